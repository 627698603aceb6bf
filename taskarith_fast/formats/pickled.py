"""PyTorch files of any content, read without executing anything; whole modules become flat state dicts."""

from __future__ import annotations

import io
import mmap
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats import machine
from taskarith_fast.formats.archive import Archive
from taskarith_fast.formats.legacy import LEGACY_MAGIC, read_legacy
from taskarith_fast.formats.modules import FoundState, find_state
from taskarith_fast.formats.rebuild import BUILDERS, StorageRef, storage_bytes, storage_dtype

_MAX_PICKLE = 64 << 20
_OTHERS = (
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"\xfd7zXZ", "an xz file: unpack it first"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ustar", "a tar archive (PyTorch before 0.1.10)"),
)


@dataclass(frozen=True)
class PickledState:
    """What a PyTorch file holds.

    Attributes:
        state: Name -> tensor, in the order of `module.state_dict()`; tied tensors share memory.
        source: What it was taken from: "a module of class ...", "a state dict", "the entry 'model'".
        skipped: What lay beside the tensors and was left out.
    """

    state: dict[str, Tensor]
    source: str
    skipped: tuple[str, ...]


def read_pickled(path: str | os.PathLike[str], *, key: str | None = None) -> PickledState:
    """Read the tensors of a file that `torch.save` wrote, none of its classes is imported or called.

    Whole modules give the parameters and persistent buffers that their `state_dict()` would, bit by bit;
    hooks that a class puts on `state_dict` are code and do not run. Memory: the tensors' own, plus 64 MiB at
    most.

    Args:
        path: A PyTorch file, of the zip format or the one before it.
        key: The entry that holds the model, for a file with several.

    Raises:
        CheckpointError: If the file is damaged, hostile, of another format, or holds no model or several.
    """
    with _named(path):
        root, fill = _open(path)
        found = find_state(root, key)
        fill({id(ref.storage): ref.storage for ref in found.tensors.values()}.values())
        views: dict[tuple[Any, ...], Tensor] = {}
        for ref in found.tensors.values():
            if ref.view not in views:
                views[ref.view] = ref.tensor()
        state = {name: views[ref.view] for name, ref in found.tensors.items()}
    return PickledState(state, found.source, found.skipped)


def peek_pickled(path: str | os.PathLike[str], *, key: str | None = None) -> FoundState:
    """What `read_pickled` would find: names, shapes and dtypes, without reading the tensors.

    Raises:
        CheckpointError: As `read_pickled`, but for damage inside the tensors.
    """
    with _named(path):
        return find_state(_open(path)[0], key)


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None


def _open(path: str | os.PathLike[str]) -> tuple[Any, Callable[[Any], None]]:
    with Path(path).open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise CheckpointError("the file is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    head = bytes(data[:512])
    if head[:4] == b"PK\x03\x04":
        return _read_archive(data)
    if head[:1] == b"\x80" and LEGACY_MAGIC in head[:32]:
        return read_legacy(data)
    raise CheckpointError(f"expected a file written by torch.save, got {_other(head)}")


def _other(head: bytes) -> str:
    for magic, name in _OTHERS:
        if head.startswith(magic) or head[257:262] == magic:
            return name
    if re.match(rb'.{8}\{"', head, re.DOTALL):
        return "a safetensors file; name it .safetensors"
    if head[:1] == b"\x80":
        return "a plain pickle; save with torch.save or safetensors"
    return "another format"


def _read_archive(data: memoryview) -> tuple[Any, Callable[[Any], None]]:
    archive = Archive(data)
    roots = [name for name in archive.members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if not roots:
        raise CheckpointError(f"expected a file written by torch.save, got {_other_archive(archive)}")
    if len(roots) > 1:
        raise CheckpointError("the archive holds more than one data.pkl")
    prefix = roots[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in archive or any(n.startswith(f"{prefix}code/") for n in archive.members):
        raise CheckpointError("a TorchScript archive holds code; save the module's state_dict() instead")
    if f"{prefix}byteorder" in archive and bytes(archive.read(f"{prefix}byteorder")) != b"little":
        raise CheckpointError("the file was written on a big-endian machine")
    pickled = archive.read(roots[0])
    if len(pickled) > _MAX_PICKLE:
        raise CheckpointError(f"the pickle has {len(pickled)} bytes, more than {_MAX_PICKLE}")
    storages = _Storages(archive, f"{prefix}data/")
    return machine.run(io.BytesIO(pickled), BUILDERS, storages.find), storages.fill


def _other_archive(archive: Archive) -> str:
    names = list(archive.members)
    if any(name.endswith((".npy", ".npz")) for name in names):
        return "an archive of NumPy arrays"
    if any(name.endswith((".zip", ".pt", ".pth", ".bin", ".safetensors")) for name in names):
        return "an archive of other files: unpack it first"
    return "a zip archive without data.pkl"


class _Storages:
    """The storages of a zip archive: declared by the pickle, held against the members, read when wanted."""

    def __init__(self, archive: Archive, prefix: str) -> None:
        self._archive, self._prefix = archive, prefix
        self._known: dict[str, StorageRef] = {}

    def find(self, identity: Any) -> StorageRef:
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise CheckpointError(f"expected the identity of a storage, got {machine.describe(identity)}")
        _, kind, key, _, numel = identity[:5]
        if not isinstance(key, str) or len(key) > 100:
            raise CheckpointError(f"a storage must be named by text, got {machine.describe(key)}")
        dtype = storage_dtype(kind)
        nbytes = storage_bytes(dtype, numel)
        known = self._known.setdefault(key, StorageRef(key, dtype, nbytes))
        if known.dtype != dtype or known.nbytes != nbytes:
            raise CheckpointError(f"storage {machine.describe(key)} is declared twice, differently")
        member = self._archive.members.get(self._prefix + key)
        if member is None or member.size != nbytes:
            have = "nothing" if member is None else f"{member.size} bytes"
            raise CheckpointError(f"storage {machine.describe(key)} must have {nbytes} bytes, the archive has {have}")
        return known

    def fill(self, storages: Any) -> None:
        for storage in storages:
            storage.data = bytes_tensor(self._archive.read(self._prefix + storage.key))


def bytes_tensor(view: memoryview) -> Tensor:
    """A copy of `view` as a uint8 tensor of its own memory."""
    return torch.frombuffer(bytearray(view), dtype=torch.uint8) if len(view) else torch.empty(0, dtype=torch.uint8)
