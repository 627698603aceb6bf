"""Tensors of a checkpoint by ranges of bytes, so that no tensor need be held whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from taskarith_fast.checkpoint.contents import read_contents
from taskarith_fast.checkpoint.header import Entry
from taskarith_fast.checkpoint.state import load_state_dict
from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.tied import find_tied

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class Source(Protocol):
    """A checkpoint that can be read in pieces, by several threads at once.

    path: What was opened.
    entries: Name -> dtype and shape.
    files: The files whose bytes are its identity, in order.
    resident: Bytes of tensors that it holds in memory.
    tied: Other name -> the name in `entries` of the same tensor.
    """

    path: Path
    entries: Mapping[str, Entry]
    files: tuple[Path, ...]
    resident: int
    tied: Mapping[str, str]

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
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return FileSource(path)
    return StateSource(path, load_state_dict(path))


class FileSource:
    """Safetensors files, read by ``pread``: a file that changes meanwhile is an error, not a mixture."""

    resident = 0

    def __init__(self, path: Path) -> None:
        contents = read_contents(path)
        self.path, self.files = path, contents.files
        self.entries: Mapping[str, Entry] = contents.entries
        self.metadata: Mapping[str, str] = contents.metadata
        self.tied: Mapping[str, str] = contents.tied
        self._file = contents.place
        self._stamps = {file: _stamp(os.stat(file)) for file in self.files}

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
        for name, tensor in state.items():
            if tensor.dtype not in DTYPE_NAMES or tensor.layout != torch.strided:
                raise CheckpointError(
                    f"{path}: {name} is {tensor.dtype} {tensor.layout}, which safetensors cannot hold"
                )
        self.tied: Mapping[str, str] = find_tied(state)
        self._state = {name: tensor.detach() for name, tensor in state.items() if name not in self.tied}
        self.entries: Mapping[str, Entry] = {
            k: Entry(DTYPE_NAMES[v.dtype], tuple(v.shape)) for k, v in self._state.items()
        }
        self.resident = sum(entry.nbytes for entry in self.entries.values())

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
