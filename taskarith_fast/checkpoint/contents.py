"""What safetensors files hold together: which tensor lies where, and which names are other names of one."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from taskarith_fast.checkpoint.header import Entry, Header, read_header
from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.tied import read_tied

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Contents:
    """The headers of a checkpoint's files as one.

    Attributes:
        files: The files, in order.
        entries: The tensors that are in them.
        place: Tensor -> its file.
        metadata: The files' metadata; of a key in several, the last one's.
        tied: Other name -> the tensor that it stands for.
    """

    files: tuple[Path, ...]
    entries: dict[str, Entry]
    place: dict[str, Path]
    metadata: dict[str, str]
    tied: dict[str, str]


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Read the headers of a safetensors file, or of all in a directory.

    Raises:
        CheckpointError: If one is absent or damaged, a tensor is in two files, the index promises one that is in none,
            or a record of tied names cannot be true.
    """
    path = Path(path)
    files = _shards(path) if path.is_dir() else (path,)
    headers = [read_header(file) for file in files]
    entries, place = _collect(path, files, headers)
    tied = read_tied([header.metadata for header in headers], entries)
    if path.is_dir():
        _check_index(path, entries.keys() | tied.keys())
    metadata = {key: value for header in headers for key, value in header.metadata.items()}
    return Contents(files, entries, place, metadata, tied)


def _shards(path: Path) -> tuple[Path, ...]:
    shards = tuple(sorted(path.glob("*.safetensors")))
    if not shards:
        raise CheckpointError(f"{path}: expected *.safetensors in the directory, got none")
    return shards


def _collect(path: Path, files: tuple[Path, ...], headers: list[Header]) -> tuple[dict[str, Entry], dict[str, Path]]:
    entries: dict[str, Entry] = {}
    place: dict[str, Path] = {}
    for file, header in zip(files, headers, strict=True):
        for name, entry in header.entries.items():
            if name in entries:
                raise CheckpointError(f"{path}: {name} is in both {place[name].name} and {file.name}")
            entries[name], place[name] = entry, file
    return entries, place


def _check_index(path: Path, names: Collection[str]) -> None:
    index = path / INDEX
    if not index.is_file():
        return
    try:
        promised = set(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: expected an index with a weight_map, got {error}") from None
    missing = sorted(promised - set(names))
    if missing:
        raise CheckpointError(f"{path}: the index names {missing[0]} and {len(missing) - 1} more, no shard has it")
