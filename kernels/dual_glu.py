"""dual_glu in Triton: slope, value and both products in registers; absent tangents are not read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels.dual_gelu import gelu_slope
from torch import Tensor

BLOCK = 1024


@triton.jit
def _slope(a, FORM: tl.constexpr):
    if FORM == "relu":
        slope = tl.where(a > 0, 1.0, 0.0)
    elif FORM == "silu":
        s = tl.sigmoid(a)
        slope = s + a * s * (1.0 - s)
    elif FORM == "gelu":
        slope = gelu_slope(a, "none")
    else:
        slope = gelu_slope(a, "tanh")
    return slope


@triton.jit
def _value(a, FORM: tl.constexpr):
    if FORM == "relu":
        value = tl.where(a > 0, a, 0.0)
    elif FORM == "silu":
        value = a * tl.sigmoid(a)
    elif FORM == "gelu":
        value = a * (0.5 + 0.5 * tl.erf(0.7071067811865475 * a))
    else:
        value = a * tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a))
    return value


@triton.jit
def _dual_glu_kernel(a, da, b, db, dy, numel, FORM: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    x = tl.load(a + i, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    if da is not None:
        gate = tl.load(b + i, mask=inside, other=0.0).to(tl.float32)
        total += _slope(x, FORM) * gate * tl.load(da + i, mask=inside, other=0.0).to(tl.float32)
    if db is not None:
        total += _value(x, FORM) * tl.load(db + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(dy + i, total.to(dy.dtype.element_ty), mask=inside)


def dual_glu_triton(a: Tensor, da: Tensor | None, b: Tensor, db: Tensor | None, form: str) -> Tensor:
    """The op's own signature."""
    a, da, b, db = (None if x is None else x.contiguous() for x in (a, da, b, db))
    dy = torch.empty_like(a)
    if a.numel():
        with torch.cuda.device_of(a):
            _dual_glu_kernel[(triton.cdiv(a.numel(), BLOCK),)](a, da, b, db, dy, a.numel(), form, BLOCK)
    return dy


_BOTH = ("da", "db")
COMPILED = [
    (
        "_dual_glu_kernel",
        {name: f"*{kind}:16" for name in ("a", *present, "b", "dy")} | {"numel": "i32:16"},
        {name: None for name in _BOTH if name not in present} | {"FORM": form, "BLOCK": BLOCK},
    )
    for kind, form, present in (
        *((kind, form, _BOTH) for kind in ("fp32", "bf16", "fp16") for form in ("relu", "silu", "gelu", "gelu_tanh")),
        ("fp32", "gelu", ("da",)),
        ("fp32", "gelu", ("db",)),
    )
]
