"""ties_merge_part in Triton: the kernel of ties_merge, told what the whole model decided."""

from __future__ import annotations

import torch
from taskarith_fast.kernels._ties import merge, parts
from torch import Tensor


def ties_merge_part_triton(
    base: list[Tensor],
    finetuned: list[Tensor],
    thresholds: Tensor,
    cutoffs: Tensor,
    shares: Tensor,
    scale: float,
    elect: str,
    combine: str,
    undecided: float,
    scope: str,
) -> list[Tensor]:
    """The op's own signature: the merged tensors, then the tally."""
    tally = thresholds.new_zeros(2, dtype=torch.int64)
    if not thresholds.shape[1]:
        return [*(b.clone(memory_format=torch.contiguous_format) for b in base), tally]
    out = [torch.empty_like(b, memory_format=torch.contiguous_format) for b in base]
    for i, part in parts(base, finetuned, thresholds, cutoffs, scope):
        found = thresholds.new_empty((part.blocks, 2), dtype=torch.int64)
        merge(part, out[i], shares, found, None, scale, elect, combine, undecided)
        tally[0] += found[:, 0].sum()
        tally[1] |= found[:, 1].max()
    return [*out, tally]
