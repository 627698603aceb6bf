"""ties_square_sums in Triton: a float64 sum a block and task, the blocks' sums added in a fixed order after."""

from __future__ import annotations

from taskarith_fast.kernels._ties import parts, square_sums
from torch import Tensor


def ties_square_sums_triton(
    base: list[Tensor], finetuned: list[Tensor], thresholds: Tensor, cutoffs: Tensor, start: Tensor, scope: str
) -> Tensor:
    """The op's own signature."""
    tensors = [part for _, part in parts(base, finetuned, thresholds, cutoffs, scope)]
    return start + square_sums(tensors, thresholds.shape[1], start)
