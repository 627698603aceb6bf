"""The arithmetic of AdamW on tiles, operation by operation that of torch.optim.AdamW (csrc/math/adamw.h)."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from taskarith_fast.kernels._common import fused, rounded_product
from torch import Tensor


def fold_adamw(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int | Tensor
) -> tuple[Any, ...]:
    """A step's scalars, folded in float64: the last arguments of ``adamw``; the last two are tensors if `step` is."""
    root2, rate = (1 - beta2**step) ** 0.5, -(lr / (1 - beta1**step))
    return 1 - lr * weight_decay, 1 - beta1, 1 - beta2, beta2, eps, root2, rate


@triton.jit
def adamw(p, g, m, v, decay, rest1, rest2, beta2, eps, root2, rate):
    """The new parameter and moments, float32."""
    # From the nearer end, as torch.lerp: beta1 = 0 gives the gradient exactly.
    near = rest1 < 0.5
    m = fused(tl.where(near, rest1, rest1 - 1.0), g - m, tl.where(near, m, g))
    v = fused(rounded_product(rest2, g), g, rounded_product(v, beta2))
    denominator = tl.div_rn(tl.sqrt_rn(v), root2) + eps
    return rounded_product(p, decay) + tl.div_rn(rounded_product(rate, m), denominator), m, v
