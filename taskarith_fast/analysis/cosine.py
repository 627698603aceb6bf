"""Cosines between task vectors: how far the edits of different tasks point the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import CheckpointError
from taskarith_fast.progress import SILENT, Progress

# Elements of each task in float64 at a time: bounds the extra memory to 8 T MiB.
_BLOCK = 1 << 20


def cosine_map(
    base: Mapping[str, Tensor], finetuned: Sequence[Mapping[str, Tensor]], *, progress: Progress = SILENT
) -> Tensor:
    """Cosines between the task vectors tau_t = finetuned[t] - base over all floating entries.

        C[s, t] = <tau_s, tau_t> / (|tau_s| |tau_t|)

    Differences, products and sums are float64; tensors are read one after the other, in blocks, so that lazy
    mappings are never held whole. A task vector that is zero has no direction: its row and column are 0, the
    diagonal included.

    Args:
        base: Name to tensor; integer and boolean tensors are left out.
        finetuned: T mappings with the floating tensors of `base`, in the same shapes.
        progress: Shows a bar.

    Returns:
        C, shape [T, T], float64, symmetric, on the CPU.

    Raises:
        CheckpointError: If a mapping lacks a tensor of `base` or has it in another shape.
    """
    gram = gram_of_deltas(base, finetuned, progress=progress)
    norm = gram.diagonal().sqrt()
    scale = torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
    cosines = (gram + gram.T) / 2 * (scale[:, None] * scale[None, :])  # symmetric to the last bit
    cosines.fill_diagonal_(1.0)
    cosines.diagonal().mul_(norm > 0)
    return cosines.clamp_(-1, 1)


def gram_of_deltas(
    base: Mapping[str, Tensor], finetuned: Sequence[Mapping[str, Tensor]], *, progress: Progress = SILENT
) -> Tensor:
    """Inner products <tau_s, tau_t> of the task vectors; arguments and errors as for `cosine_map`.

    Returns:
        Shape [T, T], float64, on the CPU.
    """
    gram = torch.zeros(len(finetuned), len(finetuned), dtype=torch.float64)
    for name in progress.track(list(base), "inner products"):
        origin = base[name]
        if origin.is_floating_point():
            gram += _gram_of_tensor(origin, [_get(state, t, name, origin) for t, state in enumerate(finetuned)])
    return gram


def _gram_of_tensor(origin: Tensor, tensors: list[Tensor]) -> Tensor:
    gram = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    origin = origin.detach().reshape(-1)
    tensors = [tensor.detach().reshape(-1) for tensor in tensors]
    for start in range(0, origin.numel() if tensors else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        deltas = torch.stack([tensor[block] for tensor in tensors]).double() - origin[block].double()  # [T, n]
        gram += (deltas @ deltas.T).cpu()
    return gram


def _get(state: Mapping[str, Tensor], t: int, name: str, origin: Tensor) -> Tensor:
    if name not in state:
        raise CheckpointError(f"finetuned[{t}] lacks the tensor {name!r} that base has")
    tensor = state[name]
    if tensor.shape != origin.shape:
        raise CheckpointError(
            f"finetuned[{t}][{name!r}] must have shape {list(origin.shape)} like base, got {list(tensor.shape)}"
        )
    return tensor
