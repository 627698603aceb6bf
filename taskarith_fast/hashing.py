"""SHA-256 of files in processes of their own, begun while the libraries are still being imported.

Importing torch takes a second or two and holds the interpreter's lock; a thread that hashes would wait for it. This
module imports nothing heavy, and is the program of those processes as well: ``python hashing.py FILES``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20  # bytes: stays in the second-level cache between reading and hashing
_LEAST = 64 << 20  # bytes worth starting a process for

PathLike = str | os.PathLike[str]


class BegunHashes:
    """Hashes of checkpoints under way; use it as a context, which ends what nobody waited for.

    Args:
        paths: Files, or directories of safetensors. Those that are absent or small in sum are left to others.
    """

    def __init__(self, paths: Sequence[PathLike]) -> None:
        groups = list(dict.fromkeys(_files(Path(path)) for path in paths))
        self._groups: dict[tuple[Path, ...], tuple[int, int]] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self._answers: dict[int, list[Any]] = {}
        if not sys.executable or not all(groups) or sum(f.stat().st_size for g in groups for f in g) < _LEAST:
            return
        workers = max(1, min(len(groups), (os.cpu_count() or 1) // 2))
        for w in range(workers):
            mine = groups[w::workers]
            self._groups.update((group, (w, i)) for i, group in enumerate(mine))
            job = json.dumps([[str(file.absolute()) for file in group] for group in mine])
            command = [sys.executable, "-I", "-S", __file__, job]
            # What cannot be read is left to those who merge, and so are the words for it.
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._processes.append(process)

    def __enter__(self) -> BegunHashes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    def has(self, files: tuple[Path, ...]) -> bool:
        """Whether these files, one after the other, are being hashed."""
        return files in self._groups

    def result(self, files: tuple[Path, ...]) -> str | None:
        """Their hash, once it is there; None if they could not be read, or are no longer what was read."""
        worker, index = self._groups[files]
        if worker not in self._answers:
            out, _ = self._processes[worker].communicate()
            self._answers[worker] = json.loads(out) if self._processes[worker].returncode == 0 else []
        if index >= len(self._answers[worker]):
            return None
        digest, stamps = self._answers[worker][index]
        try:
            return digest if stamps == [_stamp(os.stat(file)) for file in files] else None
        except OSError:
            return None


def _files(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        return tuple(sorted(path.glob("*.safetensors")))
    return (path,) if path.is_file() else ()


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _hash(files: Sequence[str]) -> tuple[str, list[list[int]]]:
    digest, buffer, stamps = hashlib.sha256(), memoryview(bytearray(_CHUNK)), []
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            stamps.append(_stamp(os.fstat(stream.fileno())))
            while count := stream.readinto(buffer):
                digest.update(buffer[:count])
    return digest.hexdigest(), stamps


if __name__ == "__main__":
    print(json.dumps([_hash(files) for files in json.loads(sys.argv[1])]))
