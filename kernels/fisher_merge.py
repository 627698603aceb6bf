"""fisher_merge in Triton: one launch a tensor, sums over tasks in float64, one rounding at the end."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import join, load_double, split
from torch import Tensor

BLOCK = 512


@triton.jit
def _fisher_merge_kernel(
    finetuned, fishers, shares, factors, out, floor, numel, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    least = join(floor)
    needed = tl.zeros([BLOCK], tl.float64)
    mass = tl.zeros([BLOCK], tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    mean = tl.zeros([BLOCK], tl.float64)
    for t in tl.static_range(len(finetuned)):
        x, fisher = load_double(finetuned[t], i, inside), load_double(fishers[t], i, inside)
        if ADD:
            raised = fisher + least
        else:
            raised = tl.maximum(fisher, least)
        raised *= tl.load(factors + t)
        share = tl.load(shares + t)
        needed += share * fisher
        mass += raised
        total += raised * x
        mean += share * x
    merged = tl.where(needed == 0, mean, total / mass)
    tl.store(out + i, merged.to(tl.float32).to(out.dtype.element_ty), mask=inside)


def fisher_merge_triton(
    finetuned: list[Tensor], fishers: list[Tensor], shares: Tensor, factors: Tensor, floor: float, add: bool
) -> list[Tensor]:
    """The op's own signature; both lists are task-major [T * L]."""
    length, out = len(finetuned) // len(shares), []
    for i in range(length):
        models, needs = (tuple(x.contiguous() for x in tensors[i::length]) for tensors in (finetuned, fishers))
        out.append(torch.empty_like(models[0]))
        if out[i].numel():
            with torch.cuda.device_of(out[i]):
                _fisher_merge_kernel[(triton.cdiv(out[i].numel(), BLOCK),)](
                    models, needs, shares.contiguous(), factors.contiguous(), out[i], split(floor), out[i].numel(),
                    add, BLOCK,
                )  # fmt: skip
    return out


COMPILED = [
    (
        "_fisher_merge_kernel",
        {
            "finetuned": (f"*{kind}:16",) * 8, "fishers": (f"*{fisher}:16",) * 8, "shares": "*fp64:16",
            "factors": "*fp64:16", "out": f"*{kind}:16", "floor": ("fp32", "fp32"), "numel": "i32",
        },
        {"ADD": add, "BLOCK": BLOCK},
    )
    for kind, fisher in (("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp16"))
    for add in (False, True)
]  # fmt: skip
