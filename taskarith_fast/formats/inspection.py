"""What a checkpoint holds: tensors, norms, zeros, values that are not finite, metadata, hashes, whose names."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taskarith_fast.formats.layouts import detect_layout
from taskarith_fast.formats.names import normalize_names, text_names
from taskarith_fast.formats.opening import hash_files, open_any
from taskarith_fast.progress import SILENT, Progress

_BLOCK = 1 << 20


@dataclass(frozen=True)
class TensorSummary:
    """One tensor in numbers."""

    dtype: str
    """Such as float32."""
    shape: tuple[int, ...]
    """Sizes."""
    norm: float | None
    """Euclidean norm of the finite values, in float64; None for integers and truth values."""
    zeros: int
    """Values that are zero."""
    nonfinite: int
    """Values that are NaN or infinite."""


@dataclass(frozen=True)
class Inspection:
    """A checkpoint in numbers; `dataclasses.asdict` of it is JSON."""

    name: str
    """File name."""
    kind: str
    """What the file is, in words."""
    layout: str | None
    """Whose names the tensors have: open_clip, timm, hf_clip, hf_vit, hf_dinov2; None if nobody's we know."""
    prefix: str
    """Wrapper before all names, such as model."""
    files: dict[str, dict[str, int | str]]
    """File name -> bytes and sha256."""
    parameters: int
    """Floating-point values, tied ones counted once."""
    text_parameters: int
    """Those of them in a CLIP model's text tower or left over from it."""
    nonfinite: int
    """Values that are NaN or infinite, in all tensors."""
    tensors: dict[str, TensorSummary]
    """Name -> numbers."""
    tied: dict[str, str]
    """Name -> the first name of the same tensor."""
    skipped: tuple[str, ...]
    """What lies beside the tensors in a PyTorch file."""
    metadata: dict[str, str]
    """Strings in the header."""


def inspect_file(path: str | os.PathLike[str], *, key: str | None = None, progress: Progress = SILENT) -> Inspection:
    """Read a checkpoint of any kind once and describe it; nothing in it is executed.

    Args:
        path: Safetensors, a directory of them, or any PyTorch file, a whole module included.
        key: The entry that holds the model, for a PyTorch file with several.
        progress: Shown while hashing and reading.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    opened = open_any(path, key=key)
    files = hash_files(path, progress)
    tensors = {}
    for name in progress.track(opened.state, "reading tensors", len(opened.state)):
        tensors[name] = summarize(opened.state[name])
    names, prefix, text = _plain(tensors)
    layout = detect_layout([name for name in names.values() if name not in text])
    counted = {name: t for name, t in tensors.items() if t.norm is not None and name not in opened.tied}
    sizes = {name: math.prod(t.shape) for name, t in counted.items()}
    return Inspection(
        name=Path(path).name,
        kind=opened.kind,
        layout=layout.name if layout else None,
        prefix=prefix,
        files=files,
        parameters=sum(sizes.values()),
        text_parameters=sum(size for name, size in sizes.items() if names[name] in text),
        nonfinite=sum(t.nonfinite for t in tensors.values()),
        tensors=tensors,
        tied=dict(opened.tied),
        skipped=opened.skipped,
        metadata=dict(opened.metadata),
    )


def summarize(tensor: Tensor) -> TensorSummary:
    """Norm, zeros and values that are not finite of one tensor, block by block."""
    squares, zeros, nonfinite = 0.0, 0, 0
    floating = tensor.is_floating_point() or tensor.is_complex()
    for block in tensor.detach().reshape(-1).split(_BLOCK) if tensor.numel() else ():
        zeros += block.numel() - int(torch.count_nonzero(block))
        if floating:
            values = (block.abs() if block.is_complex() else block).double()
            square = float(values @ values)
            if not math.isfinite(square):
                finite = torch.isfinite(values)
                nonfinite += block.numel() - int(finite.sum())
                square = float(values[finite] @ values[finite])
            squares += square
    norm = math.sqrt(squares) if floating and math.isfinite(squares) else None
    if floating and norm is None:
        norm = _large_norm(tensor)
    return TensorSummary(str(tensor.dtype)[6:], tuple(tensor.shape), norm, zeros, nonfinite)


def _large_norm(tensor: Tensor) -> float:
    """The norm of float64 values whose squares are too large for float64."""
    values = tensor.detach().abs().double().reshape(-1)
    values = values[torch.isfinite(values)]
    largest = float(values.max())
    return min(largest * float(torch.linalg.vector_norm(values / largest)), torch.finfo(torch.float64).max)


def _plain(tensors: Mapping[str, object]) -> tuple[dict[str, str], str, frozenset[str]]:
    """Old names -> names without wrapper, the wrapper, and which of the new names are text."""
    _, report = normalize_names(dict.fromkeys(tensors, torch.empty(0)))
    names = {name: report.renamed.get(name, (name,))[0] for name in tensors}
    return names, report.prefix, text_names(names.values())
