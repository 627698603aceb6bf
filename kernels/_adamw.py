"""The arithmetic of AdamW on tiles, operation by operation that of torch.optim.AdamW."""

from __future__ import annotations

import math

import triton
import triton.language as tl


def fold_adamw(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int
) -> tuple[float, float, float, float, float, float, float]:
    """A step's scalars, folded in float64: the last arguments of ``adamw``."""
    root2 = math.sqrt(1 - beta2**step)
    return 1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, root2, eps, -lr / (1 - beta1**step)


@triton.jit
def adamw(p, g, m, v, decay, rest1, beta2, rest2, root2, eps, step):
    """The new parameter and moments, float32."""
    # From the nearer end, as torch.lerp: beta1 = 0 gives the gradient exactly.
    m = tl.where(rest1 < 0.5, m + rest1 * (g - m), g + (rest1 - 1.0) * (g - m))
    v = v * beta2 + rest2 * g * g
    denominator = tl.div_rn(tl.sqrt_rn(v), root2) + eps
    return p * decay + tl.div_rn(step * m, denominator), m, v
