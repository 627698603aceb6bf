"""From any file that users bring to safetensors, with a record of all that changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taskarith_fast import __version__
from taskarith_fast.checkpoint import check_destination, save_state_dict
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.formats.convert import convert_names
from taskarith_fast.formats.names import NameReport, normalize_names
from taskarith_fast.formats.opening import hash_files, open_any
from taskarith_fast.formats.tied import find_tied
from taskarith_fast.progress import SILENT, Progress

DTYPES = {
    **dict.fromkeys(("float32", "fp32", "f32"), torch.float32),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16", "f16"), torch.float16),
}


@dataclass(frozen=True)
class Conversion:
    """What was written, and all that differs from the input.

    Attributes:
        kind: What the input is, in words.
        tensors: Tensors in the output, other names of tied ones not counted.
        parameters: Values in them.
        tied: Other name -> the name in the file.
        skipped: What lay beside the tensors of the input.
        names: What was renamed, dropped and added.
        cast: Tensors whose dtype changed.
    """

    kind: str
    tensors: int
    parameters: int
    tied: dict[str, str]
    skipped: tuple[str, ...]
    names: NameReport
    cast: int


def convert_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str | None = None,
    dtype: str | None = None,
    text_tower: str = "keep",
    normalize: bool = False,
    drop_extra: bool = False,
    key: str | None = None,
    untie: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Conversion:
    """Write any checkpoint as one safetensors file; nothing in it is executed, nothing goes without a word.

    Without `to`, `text_tower="drop"` or `normalize`, the names stay as they are. Tied tensors are written once.
    Needs the memory of the model, and of its q, k, v once more where they are split or fused.

    Args:
        source: Safetensors, a directory of them, or any PyTorch file, a whole module included.
        output: Destination, ``.safetensors``; written atomically.
        to: Layout of the names wanted, see `convert_names`.
        dtype: "float32", "bfloat16" (bf16) or "float16" (fp16) for all floating tensors; None keeps theirs.
        text_tower: "keep" or "drop" a CLIP model's text tower or what is left of it.
        normalize: Take wrappers off the names, see `normalize_names`.
        drop_extra: Leave out classifier, pooler or projection where `to` has no place for them.
        key: The entry that holds the model, for a PyTorch file with several.
        untie: Write tied tensors under each of their names.
        overwrite: Replace an existing output.
        progress: Shown while hashing.

    Raises:
        ArgumentError: If an option is not known.
        CheckpointError: If the input cannot be read or converted, a value overflows `dtype`, or the output exists.
    """
    check_destination(Path(output), overwrite)
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError(f"dtype must be one of float32, bfloat16, float16; got {dtype!r}")
    opened = open_any(source, key=key)
    state = _with_ties(opened.state, opened.tied)
    state, names = _renamed(state, to, text_tower, normalize, drop_extra)
    cast = 0
    if dtype is not None:
        state, cast = _cast(state, DTYPES[dtype])
    if untie:
        state.update((name, state[name].clone()) for name in find_tied(state))
    tied = find_tied(state)
    record = {
        "schema": 1,
        "tool": f"taskarith_fast {__version__}",
        "method": "convert",
        "inputs": hash_files(source, progress),
        "parameters": {"to": to, "dtype": dtype, "text_tower": text_tower, "normalize": normalize, "untie": untie},
        "dropped": sorted(names.dropped),
    }
    metadata = {"format": "pt", "taskarith": json.dumps(record, sort_keys=True)}
    save_state_dict(state, output, metadata=metadata, overwrite=overwrite)
    alone = [tensor for name, tensor in state.items() if name not in tied]
    return Conversion(opened.kind, len(alone), sum(t.numel() for t in alone), tied, opened.skipped, names, cast)


def _with_ties(state: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors, read; tied names share one."""
    first = {name: state[name] for name in state if name not in tied}
    return {name: first[tied.get(name, name)] for name in state}


def _renamed(
    state: dict[str, Tensor], to: str | None, text_tower: str, normalize: bool, drop_extra: bool
) -> tuple[dict[str, Tensor], NameReport]:
    if to is not None:
        return convert_names(state, target=to, text_tower=text_tower, drop_extra=drop_extra)
    if normalize or text_tower != "keep":
        return normalize_names(state, text_tower=text_tower)
    return state, NameReport()


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], int]:
    """The state in `dtype`, integers as they are, ties kept; and how many tensors changed."""
    tied = find_tied(state)
    result: dict[str, Tensor] = {}
    changed = 0
    for name, tensor in state.items():
        if name in tied:
            result[name] = result[tied[name]]
        elif not tensor.is_floating_point() or tensor.dtype == dtype:
            result[name] = tensor
        else:
            result[name] = tensor.to(dtype)
            changed += 1
            _check_overflow(name, tensor, result[name])
    return result, changed


def _check_overflow(name: str, before: Tensor, after: Tensor) -> None:
    if bool(torch.isfinite(after).all()):
        return
    lost = torch.isfinite(before) & ~torch.isfinite(after)
    if bool(lost.any()):
        count, largest = int(lost.sum()), float(before[lost].abs().max())
        raise CheckpointError(f"{name}: {count} values are too large for {str(after.dtype)[6:]}, such as {largest:g}")
