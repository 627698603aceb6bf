"""The container that `torch.save` wrote before release 1.6: five pickles in a row, then the storages."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats import machine
from taskarith_fast.formats.machine import Named, describe
from taskarith_fast.formats.rebuild import BUILDERS, StorageRef, storage_bytes, storage_dtype

_MAX_PICKLE = 64 << 20
_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_MAGIC = _MAGIC.to_bytes(10, "little")
_PROTOCOL = 1001


def read_legacy(data: memoryview) -> tuple[Any, Callable[[Any], None]]:
    """Read the pickles of a legacy file.

    Returns:
        The saved object, and a function that reads the storages it is given.

    Raises:
        CheckpointError: If the file is damaged or hostile.
    """
    storages = _LegacyStorages(data)
    stream = io.BytesIO(data[:_MAX_PICKLE])
    if machine.run(stream, {}, _no_storage) != _MAGIC or machine.run(stream, {}, _no_storage) != _PROTOCOL:
        raise CheckpointError("expected a file written by torch.save, got a pickle with another start")
    system = machine.run(stream, {}, _no_storage)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("the file was written on a big-endian machine")
    root = machine.run(stream, BUILDERS, storages.find)
    storages.locate(machine.run(stream, {}, _no_storage), stream.tell())
    return root, storages.fill


def _no_storage(identity: Any) -> Any:
    raise CheckpointError("the file's header names a storage")


class _LegacyStorages:
    """The storages of a legacy file: declared by the pickle, found by walking the list of keys after it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._declared: dict[str, tuple[torch.dtype, int]] = {}
        self._starts: dict[str, int] = {}
        self._bytes: dict[str, Tensor] = {}
        self._refs: dict[tuple[str, int, int], StorageRef] = {}

    def find(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) >= 2 and identity[0] == "module":
            return identity[1] if isinstance(identity[1], Named) else Named("an unnamed class")
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise CheckpointError(f"expected the identity of a storage, got {describe(identity)}")
        _, kind, key, _, numel = identity[:5]
        if not isinstance(key, str) or len(key) > 100:
            raise CheckpointError(f"a storage must be named by text, got {describe(key)}")
        declared = (storage_dtype(kind), storage_bytes(storage_dtype(kind), numel))
        if self._declared.setdefault(key, declared) != declared:
            raise CheckpointError(f"storage {describe(key)} is declared twice, differently")
        start, nbytes = _part(identity[5] if len(identity) > 5 else None, *declared)
        return self._refs.setdefault((key, start, nbytes), StorageRef(key, declared[0], nbytes, start))

    def locate(self, keys: Any, position: int) -> None:
        """Find the bytes of every storage, in the order of `keys`, from `position` on."""
        if not isinstance(keys, list) or any(not isinstance(k, str) or k not in self._declared for k in keys):
            raise CheckpointError("the list of storages names one that no tensor has")
        for key in keys:
            dtype, nbytes = self._declared[key]
            if key in self._starts:
                raise CheckpointError(f"the list of storages names {describe(key)} twice")
            if position + 8 + nbytes > len(self._data):
                raise CheckpointError("the file is truncated (a storage is cut)")
            (numel,) = struct.unpack_from("<q", self._data, position)
            if numel * dtype.itemsize != nbytes:
                raise CheckpointError(
                    f"storage {describe(key)} must have {nbytes // dtype.itemsize} elements, got {numel}"
                )
            self._starts[key] = position + 8
            position += 8 + nbytes

    def fill(self, storages: Any) -> None:
        for storage in storages:
            key = storage.key
            if key not in self._starts:
                raise CheckpointError(f"the file lacks storage {describe(key)}")
            if key not in self._bytes:
                start = self._starts[key]
                view = self._data[start : start + self._declared[key][1]]
                whole = torch.frombuffer(bytearray(view), dtype=torch.uint8) if len(view) else torch.empty(0)
                self._bytes[key] = whole.view(torch.uint8)
            storage.data = self._bytes[key]


def _part(view: Any, dtype: torch.dtype, nbytes: int) -> tuple[int, int]:
    """First byte and size of the part of a storage that (key, offset, numel) describes, or of all of it."""
    if view is None:
        return 0, nbytes
    if not isinstance(view, tuple) or len(view) != 3:
        raise CheckpointError(f"a storage's part must be a key, an offset and a size, got {describe(view)}")
    start, size = (storage_bytes(dtype, count) for count in view[1:])
    if start + size > nbytes:
        raise CheckpointError("a part of a storage lies outside it")
    return start, size
