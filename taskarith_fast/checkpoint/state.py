"""State dicts in and out of files: safetensors (one file or sharded) and PyTorch files that hold tensors only.

Reading is lazy: a tensor is read when it is looked up. Writing is atomic: the destination is absent, old, or complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskarith_fast.checkpoint.contents import Contents, read_contents
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.formats.pickled import peek_pickled, read_pickled
from taskarith_fast.formats.tied import untied, write_tied


class LazyState(Mapping[str, Tensor]):
    """Tensors of one or more safetensors files, read when looked up.

    Attributes:
        metadata: The files' metadata, merged.
        tied: Name -> the name under which the files hold the same tensor.
    """

    def __init__(self, contents: Contents) -> None:
        self._files = contents.place
        self.metadata = contents.metadata
        self.tied = contents.tied

    def __getitem__(self, name: str) -> Tensor:
        name = self.tied.get(name, name)
        with _opened(self._files[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        yield from self._files
        yield from self.tied

    def __len__(self) -> int:
        return len(self._files) + len(self.tied)


def load_state_dict(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Open a checkpoint.

    Args:
        path: A ``.safetensors`` file, a directory with ``*.safetensors`` (sharded, with or without an index), or a
            PyTorch file (``.pt``, ``.pth``, ``.bin``) that holds a state dict, bare or in an entry such as
            "state_dict", "model" or "module". A file that holds a whole module is for ``taskarith convert``.

    Returns:
        Name -> tensor; lazy for safetensors.

    Raises:
        CheckpointError: If there is no such file, or it is truncated, of another format, or holds more than tensors.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; expected a file or a directory of safetensors")
    if path.is_dir() or path.suffix == ".safetensors":
        return LazyState(read_contents(path))
    return _load_torch(path)


def save_state_dict(
    state: Mapping[str, Tensor], path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write a state dict to one safetensors file, atomically; tied tensors are written once and recorded.

    Args:
        state: Name -> tensor.
        path: Destination; its directory is made if need be.
        metadata: Strings stored in the header.
        overwrite: Replace an existing file.

    Raises:
        CheckpointError: If the file exists and `overwrite` is off, or the path does not end in ``.safetensors``.
    """
    path = Path(path)
    check_destination(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        tensors, tied = untied(state)
        save_file(tensors, temporary, metadata=write_tied(tied, metadata or {}))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def with_kind(kind: Mapping[str, str], metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Metadata of a file: what says its kind, and the strings of a caller.

    Raises:
        ArgumentError: If the caller's use a name that the kind needs.
    """
    for name in kind:
        if name in (metadata or {}):
            raise ArgumentError(f"metadata must not use the name {name!r}; the format needs it")
    return {**(metadata or {}), **kind}


def check_destination(path: Path, overwrite: bool) -> None:
    """Refuse a destination that is not a ``.safetensors`` name, or exists while `overwrite` is off."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: the output must end in .safetensors")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path}: exists already; pass overwrite (--overwrite) to replace it")


def _load_torch(path: Path) -> dict[str, Tensor]:
    found = peek_pickled(path)
    if found.is_module:
        raise CheckpointError(
            f"{path}: expected a state dict, got {found.source}; "
            f"run: taskarith convert {path.name} {path.stem}.safetensors"
        )
    if found.others:
        raise CheckpointError(f"{path}: {found.others[0]} must be a tensor; taskarith convert leaves it out")
    return read_pickled(path).state


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
