"""ties_merge in Triton: a launch a tensor, and one more where the whole model decides what a zero vote means."""

from __future__ import annotations

import torch
from taskarith_fast.kernels._ties import merge, parts, square_sums
from torch import Tensor


def ties_merge_triton(
    base: list[Tensor],
    finetuned: list[Tensor],
    thresholds: Tensor,
    cutoffs: Tensor,
    scale: float,
    elect: str,
    combine: str,
    zero_sign: str,
    scope: str,
) -> list[Tensor]:
    """The op's own signature; `finetuned` is task-major [T * L], the tables are [S, T]."""
    tasks = thresholds.shape[1]
    if not tasks:
        return [b.clone(memory_format=torch.contiguous_format) for b in base]
    out = [torch.empty_like(b, memory_format=torch.contiguous_format) for b in base]
    tensors = dict(parts(base, finetuned, thresholds, cutoffs, scope))
    shares = thresholds.new_zeros(0, dtype=torch.float64)
    if elect in ("normfrac", "normmass"):
        sums = square_sums(list(tensors.values()), tasks, thresholds)
        shares = torch.where(sums > 0, 1 / sums, 0.0)
    rules = (scale, elect, combine, 0.0 if zero_sign == "zero" else 1.0)
    if zero_sign != "global_majority":
        for i, part in tensors.items():
            merge(part, out[i], shares, None, None, *rules)
        return out
    tallies = {i: thresholds.new_empty((p.blocks, 2), dtype=torch.int64) for i, p in tensors.items()}
    majority = thresholds.new_zeros((), dtype=torch.int64)
    for i, part in tensors.items():
        merge(part, out[i], shares, tallies[i], None, *rules)
        majority += tallies[i][:, 0].sum()
    for i, part in tensors.items():
        merge(part, out[i], shares, tallies[i], majority, *rules)
    return out
