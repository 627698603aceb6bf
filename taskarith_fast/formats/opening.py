"""One door for every file that users bring, whole-module pickles included; and what identifies a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from taskarith_fast.checkpoint import LazyState, load_state_dict
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.formats.pickled import read_pickled
from taskarith_fast.formats.tied import find_tied
from taskarith_fast.progress import SILENT, Progress

_CHUNK = 4 << 20


@dataclass(frozen=True)
class Opened:
    """A checkpoint of any kind.

    Attributes:
        state: Name -> tensor; read when looked up for safetensors.
        kind: What the file is, in words.
        metadata: Strings in the header.
        skipped: What lay beside the tensors and is not in `state`.
        tied: Name -> the first name of the same tensor.
    """

    state: Mapping[str, Tensor]
    kind: str
    metadata: Mapping[str, str]
    skipped: tuple[str, ...]
    tied: Mapping[str, str]


def open_any(path: str | os.PathLike[str], *, key: str | None = None) -> Opened:
    """Open safetensors, a directory of them, or any PyTorch file, without executing anything.

    Args:
        path: The file or directory.
        key: The entry that holds the model, for a PyTorch file with several.

    Raises:
        ArgumentError: If a key is given for safetensors.
        CheckpointError: If the file is absent, damaged, hostile, or of another format.
    """
    path = Path(path)
    if path.is_file() and path.suffix != ".safetensors":
        found = read_pickled(path, key=key)
        return Opened(found.state, f"PyTorch file, {found.source}", {}, found.skipped, find_tied(found.state))
    if key is not None:
        raise ArgumentError(f"key is for PyTorch files with several models, {path} is none")
    state = load_state_dict(path)
    assert isinstance(state, LazyState)
    kind = "directory of safetensors" if path.is_dir() else "safetensors"
    return Opened(state, kind, state.metadata, (), state.tied)


def hash_files(path: str | os.PathLike[str], progress: Progress = SILENT) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of a file, or of the safetensors files in a directory.

    Returns:
        File name -> {"bytes": size, "sha256": hexadecimal digest}.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    result: dict[str, dict[str, int | str]] = {}
    try:
        for file in files:
            size, digest = file.stat().st_size, hashlib.sha256()
            with file.open("rb") as stream, progress.stage(f"hashing {file.name}", size) as stage:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    stage.advance(len(chunk))
            result[file.name] = {"bytes": size, "sha256": digest.hexdigest()}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    return result
