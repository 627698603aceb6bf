"""dual_gelu in Triton: the slope of a GELU times the tangent, one read of both and one write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def gelu_slope(x, FORM: tl.constexpr):
    """g'(x) of the op's form."""
    if FORM == "none":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        slope = 0.5 + 0.5 * tl.erf(0.7071067811865475 * x) + x * density
    elif FORM == "tanh":
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # (1 + tanh u) / 2 = sigmoid(2 u)
        slope = s + x * s * (1.0 - s) * (1.5957691216057308 * (1.0 + 0.134145 * x * x))
    else:
        s = tl.sigmoid(1.702 * x)
        slope = s + 1.702 * x * s * (1.0 - s)
    return slope


@triton.jit
def _dual_gelu_kernel(x, dx, dy, numel, FORM: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    slope = gelu_slope(tl.load(x + i, mask=inside, other=0.0).to(tl.float32), FORM)
    tangent = tl.load(dx + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(dy + i, (slope * tangent).to(dy.dtype.element_ty), mask=inside)


def dual_gelu_triton(x: Tensor, dx: Tensor, approximate: str) -> Tensor:
    """The op's own signature."""
    x, dx = x.contiguous(), dx.contiguous()
    dy = torch.empty_like(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _dual_gelu_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, dx, dy, x.numel(), approximate, BLOCK)
    return dy


COMPILED = [
    (
        "_dual_gelu_kernel",
        {"x": f"*{kind}:16", "dx": f"*{kind}:16", "dy": f"*{kind}:16", "numel": "i32:16"},
        {"FORM": form, "BLOCK": BLOCK},
    )
    for kind in ("fp32", "bf16", "fp16")
    for form in ("none", "tanh", "quick")
]
