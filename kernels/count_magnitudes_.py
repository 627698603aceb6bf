"""count_magnitudes_ in Triton: what lies strictly inside a bracket goes to memory one by one, the rest as sums.

What is above, and the bracket's ends, which may be ties of very many entries, are counted in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._radix import magnitudes
from torch import Tensor

BLOCK = 1024


@triton.jit
def _count_magnitudes_kernel(counts, base, finetuned, brackets, bins, numel, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    one = tl.full([BLOCK], 1, counts.dtype.element_ty)
    for t in tl.static_range(len(finetuned)):
        low, high, shift = tl.load(brackets + 3 * t), tl.load(brackets + 3 * t + 1), tl.load(brackets + 3 * t + 2)
        bits = magnitudes(base, finetuned[t], i, inside)
        row = counts + t * (bins + 1)
        within = inside & (bits > low) & (bits < high)
        tl.atomic_add(row + tl.where(within, (bits - low) >> shift, 0), one, mask=within)
        _add(row + bins, inside & (bits > high))
        _add(row + ((high - low) >> shift), inside & (bits == high))
        if low < high:
            _add(row, inside & (bits == low))


@triton.jit
def _add(count, flags):
    found = tl.sum(flags.to(tl.int32))
    if found > 0:
        tl.atomic_add(count, found.to(count.dtype.element_ty))


def count_magnitudes__triton(
    counts: Tensor, base: Tensor, finetuned: list[Tensor], low: list[int], high: list[int], shift: list[int]
) -> None:
    """The op's own signature; `counts` is [T, bins + 1]."""
    if not base.numel() or not finetuned:
        return
    brackets = torch.tensor([low, high, shift], dtype=torch.int32, device=base.device).t().contiguous()
    with torch.cuda.device_of(base):
        _count_magnitudes_kernel[(triton.cdiv(base.numel(), BLOCK),)](
            counts, base.contiguous(), tuple(f.contiguous() for f in finetuned), brackets, counts.shape[1] - 1,
            base.numel(), BLOCK,
        )  # fmt: skip


COMPILED = [
    (
        "_count_magnitudes_kernel",
        {
            "counts": f"*{count}:16", "base": f"*{kind}:16", "finetuned": (f"*{kind}:16",) * 8,
            "brackets": "*i32:16", "bins": "i32", "numel": "i32",
        },
        {"BLOCK": BLOCK},
    )
    for count in ("i32", "i64")
    for kind in ("fp32", "bf16", "fp16")
]  # fmt: skip
