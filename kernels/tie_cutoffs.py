"""tie_cutoffs in Triton: ties are counted block by block, then the last one that is kept is looked for in its block."""

from __future__ import annotations

import torch
from taskarith_fast.kernels._magnitude_ranks import find_last_ties
from torch import Tensor


def tie_cutoffs_triton(base: Tensor, finetuned: list[Tensor], values: list[int], left: list[int]) -> Tensor:
    """The op's own signature: cutoffs and what is left, int64 [2, T]."""
    keys, wanted = (
        torch.tensor(x, dtype=torch.int64, device=base.device) for x in ([0x7FFFFFFF - v for v in values], left)
    )
    cutoffs, found = torch.zeros_like(keys), torch.zeros_like(keys)
    if base.numel() and finetuned:
        part = (base.contiguous(), tuple(f.contiguous() for f in finetuned))
        found = find_last_ties(part, keys, wanted, None, cutoffs, 0, found)
    return torch.stack([torch.where(found <= wanted, base.numel(), cutoffs), (wanted - found).clamp_min(0)])
