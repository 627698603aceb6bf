"""dual_layer_norm in Triton: a program a row, which is read once and kept in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _dual_layer_norm_kernel(x, dx, weight, dweight, dbias, dy, width, eps, CENTERED: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * width
    i = tl.arange(0, BLOCK)
    inside = i < width
    h = tl.load(x + start + i, mask=inside, other=0.0).to(tl.float32)
    if CENTERED:
        h = tl.where(inside, h - tl.sum(h) / width, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(h * h) / width + eps)
    h *= rstd
    total = tl.zeros([BLOCK], tl.float32)
    if dx is not None:
        step = tl.load(dx + start + i, mask=inside, other=0.0).to(tl.float32)
        along = tl.sum(h * step) / width
        if CENTERED:
            step -= tl.sum(step) / width
        total = (step - h * along) * rstd
        if weight is not None:
            total *= tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    if dweight is not None:
        total += h * tl.load(dweight + i, mask=inside, other=0.0).to(tl.float32)
    if dbias is not None:
        total += tl.load(dbias + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(dy + start + i, total.to(dy.dtype.element_ty), mask=inside)


def dual_layer_norm_triton(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    eps: float,
    centered: bool,
) -> Tensor:
    """The op's own signature."""
    x = x.contiguous()
    rest = [None if t is None else t.contiguous() for t in (dx, weight, dweight, dbias)]
    dy = torch.empty_like(x)
    if x.numel():
        width = x.shape[-1]
        with torch.cuda.device_of(x):
            _dual_layer_norm_kernel[(x.numel() // width,)](x, *rest, dy, width, eps, centered, **_meta(width))
    return dy


def _meta(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


COMPILED = [
    (
        "_dual_layer_norm_kernel",
        {n: f"*{kind}:16" for n in ("x", "dx", "weight", "dweight", "dbias", "dy")}
        | {"width": "i32:16", "eps": "fp32"},
        {"CENTERED": centered, **_meta(width)},
    )
    for kind in ("fp32", "bf16", "fp16")
    for centered, width in ((True, 768), (False, 768), (True, 4096))
]
