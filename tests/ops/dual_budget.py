"""The error budget of pair operators: sums of terms that cancel are judged by the size of the terms."""

from __future__ import annotations

import torch
from torch import Tensor

# float32 roundings of one term on its way: statistics or softmax, exp to two units, products, sums by lanes.
ROUNDINGS = 16


def assert_within_term_budget(out: Tensor, eager: Tensor, truth: Tensor, terms: Tensor) -> None:
    """|truth - out| <= |truth - eager| + one rounding of the type + ROUNDINGS float32 roundings of the terms' size.

    Where a difference of large terms is small, no float32 computation is exact to the size of the difference.
    """
    assert out.shape == truth.shape
    eps = torch.finfo(out.dtype).eps
    allowed = (truth - eager.double()).abs() + eps * truth.abs() + ROUNDINGS * torch.finfo(torch.float32).eps * terms
    excess = (truth - out.double()).abs() - allowed - torch.finfo(out.dtype).smallest_normal
    assert not torch.isnan(out).any()
    assert out.numel() == 0 or excess.max() <= 0, f"excess {excess.max()} at {int(excess.argmax())}"


def double(x):
    """A tensor in float64; other arguments as they are."""
    return x.double() if isinstance(x, Tensor) else x
