"""Hash the inputs beside the merge: what went in is part of the record."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from taskarith_fast.checkpoint.sources import Source, fill, open_input
from taskarith_fast.hashing import BegunHashes

UNKNOWN = "0" * 64
_CHUNK = 1 << 20  # bytes: stays in the second-level cache between reading and hashing


class Hashes:
    """sha256 of every source, computed in threads that read on their own.

    Args:
        sources: What to hash: the bytes of their files, one after the other.
        enabled: Switch it off, and every hash is None; or what is being hashed already.
    """

    def __init__(self, sources: Sequence[Source], enabled: bool | BegunHashes = True) -> None:
        self._stop = threading.Event()
        begun = enabled if isinstance(enabled, BegunHashes) else None
        self._pool = ThreadPoolExecutor(max(1, min(len(sources), (os.cpu_count() or 1) // 2))) if enabled else None
        self._jobs: list[Callable[[], str]] = [self._start(source, begun) for source in sources] if enabled else []
        self.found: list[str | None] = [UNKNOWN if enabled else None] * len(sources)

    def __enter__(self) -> Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def wait(self) -> None:
        """Put the hashes into `found`."""
        if self._jobs:
            self.found = [job() for job in self._jobs]

    def _start(self, source: Source, begun: BegunHashes | None) -> Callable[[], str]:
        if begun and begun.has(source.files):
            return lambda: begun.result(source.files) or self._hash(source)
        assert self._pool
        return self._pool.submit(self._hash, source).result

    def _hash(self, source: Source) -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        for file in source.files:
            with open_input(file) as stream:
                size = os.fstat(stream.fileno()).st_size
                for offset in range(0, size, _CHUNK):
                    if self._stop.is_set():
                        return UNKNOWN
                    part = buffer[: min(_CHUNK, size - offset)]
                    fill(stream.fileno(), offset, part, file)
                    digest.update(part)
        return digest.hexdigest()
