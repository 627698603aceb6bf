"""The header of a safetensors file: read strictly, written deterministically.

A file is 8 bytes of length (little-endian), that many bytes of JSON, and the tensors' bytes. A header is accepted
only if every byte of the rest belongs to exactly one tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskarith_fast.errors import CheckpointError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_LONGEST = 100_000_000  # bytes of JSON; the format's own limit
_LARGEST = 2**62


@dataclass(frozen=True)
class Entry:
    """One tensor: safetensors' name of its dtype, its shape, and where its bytes begin in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def numel(self) -> int:
        n = 1
        for side in self.shape:
            n *= side
        return n

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """Tensors by name, the metadata, and how many bytes the file must have."""

    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)
    size: int = 0


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: If the file cannot be read, or is not a complete safetensors file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LONGEST):
                raise CheckpointError(f"{path}: not a complete safetensors file (no room for its header)")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return parse_header(text, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from None


def parse_header(text: bytes, size: int) -> Header:
    """Check the JSON of a header against the `size` of its file in bytes.

    Raises:
        CheckpointError: If it is not what the format asks for.
    """
    try:
        loaded = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header is no JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"the header must be an object, got {type(loaded).__name__}")
    metadata = _metadata(loaded.pop("__metadata__", {}))
    begin = 8 + len(text)
    entries = {name: _entry(name, value, begin) for name, value in loaded.items()}
    end = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if entry.begin != end:
            raise CheckpointError(f"{name} must begin at byte {end - begin}, got {entry.begin - begin}")
        end += entry.nbytes
    if end != size:
        raise CheckpointError(f"the tensors take {end - begin} bytes, the file has {size - begin}")
    return Header(entries, metadata, size)


def layout(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, Entry]]:
    """The first bytes of a file that holds `entries`, and where each of them then begins.

    Tensors lie in the order of their item size, largest first, then by name, so that each is aligned.
    """
    order = sorted(entries, key=lambda name: (-ITEM_BYTES[entries[name].dtype], name))
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        end = offset + entries[name].nbytes
        table[name] = {
            "dtype": entries[name].dtype,
            "shape": list(entries[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    placed = {
        name: Entry(entries[name].dtype, entries[name].shape, begin + table[name]["data_offsets"][0]) for name in order
    }
    return len(text).to_bytes(8, "little") + text, placed


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not allowed")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError("__metadata__ must map strings to strings")
    return value


def _entry(name: str, value: Any, begin: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{name} must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{name}: unknown dtype {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{name}: shape and data_offsets must be lists of whole numbers")
    entry = Entry(dtype, tuple(shape), begin + offsets[0])
    if entry.nbytes != offsets[1] - offsets[0]:
        raise CheckpointError(f"{name}: {dtype} {shape} takes {entry.nbytes} bytes, data_offsets are {offsets}")
    return entry


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _LARGEST for n in value)
