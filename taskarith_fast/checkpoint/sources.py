"""Tensors of a checkpoint by ranges of bytes, so that no tensor need be held whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from taskarith_fast.checkpoint.header import Entry, read_header
from taskarith_fast.checkpoint.state import load_state_dict
from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.tied import check_tied, read_tied

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
INDEX = "model.safetensors.index.json"


class Source(Protocol):
    """A checkpoint that can be read in pieces, by several threads at once.

    path: What was opened.
    entries: Name -> dtype and shape.
    files: The files whose bytes are its identity, in order.
    resident: Bytes of tensors that it holds in memory.
    tied: Groups of names that share their memory; empty where the format cannot say.
    """

    path: Path
    entries: Mapping[str, Entry]
    files: tuple[Path, ...]
    resident: int
    tied: tuple[tuple[str, ...], ...]

    def read(self, name: str, begin: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from its byte `begin` on."""

    def read_many(self, reads: Iterable[tuple[str, int, memoryview]]) -> None:
        """`read` for many small ranges (name, begin, out)."""


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a checkpoint for reading by ranges.

    Args:
        path: A ``.safetensors`` file, a directory of them, or whatever ``load_state_dict`` reads (then the tensors
            are held in memory).

    Raises:
        CheckpointError: If it is absent, damaged, or of another format.
    """
    path = Path(path)
    if path.is_dir():
        return FileSource(path, _shards(path))
    if path.is_file() and path.suffix == ".safetensors":
        return FileSource(path, (path,))
    return StateSource(path, load_state_dict(path))


class FileSource:
    """Safetensors files, read by ``pread``: a file that changes meanwhile is an error, not a mixture."""

    resident = 0
    tied: tuple[tuple[str, ...], ...] = ()

    def __init__(self, path: Path, files: tuple[Path, ...]) -> None:
        self.path, self.files = path, files
        entries: dict[str, Entry] = {}
        self.entries: Mapping[str, Entry] = entries
        self.metadata: dict[str, str] = {}
        self._file: dict[str, Path] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}
        for file in files:
            header = read_header(file)
            self._stamps[file] = _stamp(os.stat(file))
            self.metadata.update(header.metadata)
            for name, entry in header.entries.items():
                if name in self.entries:
                    raise CheckpointError(f"{path}: {name} is in both {self._file[name].name} and {file.name}")
                entries[name], self._file[name] = entry, file
        _check_index(path, self.entries)
        tied = check_tied(read_tied(self.metadata), self.entries)
        for name, first in tied.items():
            self.entries[name], self._file[name] = self.entries[first], self._file[first]
        self.tied = tuple(tied.items())

    def read(self, name: str, begin: int, out: memoryview) -> None:
        self.read_many([(name, begin, out)])

    def read_many(self, reads: Iterable[tuple[str, int, memoryview]]) -> None:
        with contextlib.ExitStack() as stack:
            streams: dict[Path, int] = {}
            for name, begin, out in reads:
                file = self._file[name]
                if file not in streams:
                    streams[file] = stack.enter_context(open_input(file)).fileno()
                    if _stamp(os.fstat(streams[file])) != self._stamps[file]:
                        raise CheckpointError(f"{file}: the file changed while it was read")
                fill(streams[file], self.entries[name].begin + begin, out, file)


class StateSource:
    """Tensors that are in memory already, such as those of a PyTorch file."""

    def __init__(self, path: Path, state: Mapping[str, Tensor]) -> None:
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        self._state = {name: tensor.detach() for name, tensor in state.items()}
        for name, tensor in self._state.items():
            if tensor.dtype not in DTYPE_NAMES or tensor.layout != torch.strided:
                raise CheckpointError(
                    f"{path}: {name} is {tensor.dtype} {tensor.layout}, which safetensors cannot hold"
                )
        self.entries: Mapping[str, Entry] = {
            k: Entry(DTYPE_NAMES[v.dtype], tuple(v.shape)) for k, v in self._state.items()
        }
        self.resident = sum(entry.nbytes for entry in self.entries.values())
        groups: dict[int, list[str]] = {}
        for name, tensor in self._state.items():
            if tensor.numel():
                groups.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
        self.tied = tuple(tuple(names) for names in groups.values() if len(names) > 1)

    def read(self, name: str, begin: int, out: memoryview) -> None:
        if len(out):
            flat = self._state[name].contiguous().reshape(-1).view(torch.uint8)
            torch.frombuffer(out, dtype=torch.uint8).copy_(flat[begin : begin + len(out)])

    def read_many(self, reads: Iterable[tuple[str, int, memoryview]]) -> None:
        for name, begin, out in reads:
            self.read(name, begin, out)


def open_input(file: Path):  # type: ignore[no-untyped-def]
    """Open `file` for reading without Python's buffer; CheckpointError where that fails."""
    try:
        return file.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None


def fill(descriptor: int, offset: int, out: memoryview, file: Path) -> None:
    """Read exactly ``len(out)`` bytes from `offset` on."""
    done = 0
    while done < len(out):
        try:
            count = os.preadv(descriptor, [out[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
        if count == 0:
            raise CheckpointError(f"{file}: the file ends at byte {offset + done}, {len(out) - done} bytes are missing")
        done += count


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _shards(path: Path) -> tuple[Path, ...]:
    shards = tuple(sorted(path.glob("*.safetensors")))
    if not shards:
        raise CheckpointError(f"{path}: expected *.safetensors in the directory, got none")
    return shards


def _check_index(path: Path, entries: Mapping[str, Entry]) -> None:
    index = path / INDEX
    if not index.is_file():
        return
    try:
        promised = set(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: expected an index with a weight_map, got {error}") from None
    missing = sorted(promised - entries.keys())
    if missing:
        raise CheckpointError(f"{path}: the index names {missing[0]} and {len(missing) - 1} more, no shard has it")
