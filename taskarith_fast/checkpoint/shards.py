"""Safetensors outputs, one file or several with an index, whose tensors are written by ranges in any order."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from taskarith_fast.checkpoint.contents import INDEX
from taskarith_fast.checkpoint.header import Entry, layout

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def split_shards(entries: Mapping[str, Entry], shard_size: int | None) -> list[dict[str, Entry]]:
    """Group tensors, in the order given, into files of at most `shard_size` bytes of tensors (a larger one alone)."""
    shards: list[dict[str, Entry]] = [{}]
    size = 0
    for name, entry in entries.items():
        if shards[-1] and shard_size is not None and size + entry.nbytes > shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += entry.nbytes
    return shards


class ShardWriter:
    """Files of one output under construction.

    Args:
        target: The file, or the directory that gets ``model.safetensors`` or shards and an index.
        shards: The tensors of each file.
        metadata: Makes the metadata of a file from its tensors; called again by `finish`, and must then give as many
            bytes.
    """

    def __init__(
        self, target: Path, shards: list[dict[str, Entry]], metadata: Callable[[Mapping[str, Entry]], dict[str, str]]
    ) -> None:
        self._target, self._shards, self._metadata = target, shards, metadata
        self._place: dict[str, tuple[int, int]] = {}
        self._handles: list[int] = []
        self.paths = [target] if not target.is_dir() else [target / name for name in shard_names(len(shards))]

    def __enter__(self) -> ShardWriter:
        for path, shard in zip(self.paths, self._shards, strict=True):
            header, placed = layout(shard, self._metadata(shard))
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            self._handles.append(handle)
            size = len(header) + sum(entry.nbytes for entry in shard.values())
            _reserve(handle, size)
            _write(handle, header, 0)
            self._place.update((name, (handle, entry.begin)) for name, entry in placed.items())
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            os.close(handle)

    def write(self, name: str, begin: int, data: memoryview) -> None:
        """Write bytes of tensor `name` from its byte `begin` on."""
        handle, start = self._place[name]
        _write(handle, data, start + begin)

    def flush(self) -> None:
        """Bring what was written to the disk; later flushes have less to do."""
        for handle in self._handles:
            os.fdatasync(handle)

    def finish(self) -> None:
        """Write the headers again, with the metadata as it is now, and the index."""
        for handle, shard in zip(self._handles, self._shards, strict=True):
            header, placed = layout(shard, self._metadata(shard))
            if any(self._place[name][1] != entry.begin for name, entry in placed.items()):
                raise AssertionError("the metadata changed its length")
            _write(handle, header, 0)
        if len(self._shards) > 1:
            weight_map = {n: path.name for path, shard in zip(self.paths, self._shards, strict=True) for n in shard}
            total = sum(entry.nbytes for shard in self._shards for entry in shard.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self._target / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def shard_names(count: int) -> list[str]:
    """File names as Hugging Face writes them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _reserve(handle: int, size: int) -> None:
    """Claim the space, so that a full disk is noticed before any work; where that is impossible, just the size."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in _FULL:
            raise
        os.ftruncate(handle, size)


def _write(handle: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count
