"""Atomic outputs: a file or a directory appears complete, or not at all.

The output is built in a hidden sibling of the destination that its process holds a lock on, flushed to the disk, and
renamed. What a killed process left behind has no lock any more, and is removed by the next one that writes there.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from taskarith_fast.errors import CheckpointError

_MARK = ".taskarith-"
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2
_HERE = -100  # AT_FDCWD


@contextlib.contextmanager
def staged(path: Path, *, directory: bool) -> Iterator[Path]:
    """Build an output under a temporary name; it takes the name `path` when the block ends without an error.

    Args:
        path: Destination; whatever has the name is replaced.
        directory: Whether it is a directory.

    Yields:
        The temporary file (empty) or directory.

    Raises:
        CheckpointError: If the destination cannot be written, or the disk is full.
    """
    lock = -1
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            remove_debris(path)
            temporary = _create(path, directory)
            lock = os.open(temporary, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
        _flush(temporary)
        _publish(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            _remove(temporary)
        if lock >= 0:
            os.close(lock)


def remove_debris(path: Path) -> list[Path]:
    """Remove what killed processes left of earlier outputs called `path`; says what was removed.

    If such a process died between the two renames that replace a directory, the old one gets its name back.
    """
    removed = []
    for debris in sorted(path.parent.glob(f".{_escaped(path.name)}{_MARK}*")):
        if not _is_dead(debris):
            continue
        if debris.name.endswith(".old") and not path.exists():
            debris.rename(path)
            continue
        _remove(debris)
        removed.append(debris)
    return removed


def _create(path: Path, directory: bool) -> Path:
    prefix = f".{path.name}{_MARK}"
    if directory:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix, suffix=".tmp"))
        temporary.chmod(0o777 & ~_umask())
        return temporary
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
    os.fchmod(handle, 0o666 & ~_umask())
    os.close(handle)
    return Path(name)


def _publish(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        if temporary.is_dir() and path.exists():
            path.unlink()  # a directory cannot be renamed over a file
        os.replace(temporary, path)
    elif not _exchange(temporary, path):
        old = temporary.with_suffix(".old")
        path.rename(old)
        temporary.rename(path)
        _remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0


def _flush(path: Path) -> None:
    for file in (*path.iterdir(), path) if path.is_dir() else (path,):
        _sync(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_dead(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
