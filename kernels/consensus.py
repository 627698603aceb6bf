"""consensus in Triton: the sum of all deltas, then the vote of the tasks that need an entry."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import join, load_double, split
from taskarith_fast.kernels.tall_mask import is_needed, total_delta
from torch import Tensor

BLOCK = 512


@triton.jit
def _consensus_kernel(base, out, finetuned, lambdas, threshold, scale, numel, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    start = load_double(base, i, inside)
    total = total_delta(finetuned, start, i, inside)
    votes = tl.zeros([BLOCK], tl.int32)
    for t in tl.static_range(len(finetuned)):
        votes += is_needed(load_double(finetuned[t], i, inside) - start, lambdas, t, total).to(tl.int32)
    merged = tl.where(votes >= threshold, start + join(scale) * total, start)
    tl.store(out + i, merged.to(tl.float32).to(out.dtype.element_ty), mask=inside)


def consensus_triton(
    base: list[Tensor], finetuned: list[Tensor], lambdas: Tensor, threshold: int, scale: float
) -> list[Tensor]:
    """The op's own signature; `finetuned` is task-major [T * L]."""
    results = []
    for i, b in enumerate(base):
        tasks = tuple(f.contiguous() for f in finetuned[i :: len(base)])
        out = (torch.empty_like if tasks else torch.clone)(b, memory_format=torch.contiguous_format)
        if b.numel() and tasks:
            with torch.cuda.device_of(b):
                _consensus_kernel[(triton.cdiv(b.numel(), BLOCK),)](
                    b.contiguous(), out, tasks, lambdas.contiguous(), threshold, split(scale), b.numel(), BLOCK
                )
        results.append(out)
    return results


COMPILED = [
    (
        "_consensus_kernel",
        {
            "base": f"*{kind}:16", "out": f"*{kind}:16", "finetuned": (f"*{kind}:16",) * 8, "lambdas": "*fp64:16",
            "threshold": "i32", "scale": ("fp32", "fp32"), "numel": "i32:16",
        },
        {"BLOCK": BLOCK},
    )
    for kind in ("fp32", "bf16", "fp16")
]  # fmt: skip
