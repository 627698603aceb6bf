"""count_nonfinite in Triton: a count a program, added to its tensor's; integers, so that the order does not show."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def _count_nonfinite_kernel(x, count, numel, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < numel, other=0.0).to(tl.float32)
    found = tl.sum(1 - (tl.abs(value) < float("inf")).to(tl.int32))
    if found > 0:
        tl.atomic_add(count, found.to(tl.int64))


def count_nonfinite_triton(tensors: list[Tensor]) -> Tensor:
    """The op's own signature."""
    counts = (tensors[0] if tensors else torch.empty(0)).new_zeros(len(tensors), dtype=torch.int64)
    for i, x in enumerate(tensors):
        if x.numel():
            with torch.cuda.device_of(x):
                grid = (triton.cdiv(x.numel(), BLOCK),)
                _count_nonfinite_kernel[grid](x.contiguous(), counts[i:], x.numel(), BLOCK)
    return counts


COMPILED = [
    ("_count_nonfinite_kernel", {"x": f"*{kind}:16", "count": "*i64", "numel": "i32"}, {"BLOCK": BLOCK})
    for kind in ("fp32", "bf16", "fp16")
]
