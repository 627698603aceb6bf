"""weighted_sum_backward in Triton: a float64 sum a chunk and task, the chunks' sums added in a fixed order after."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, BLOCKS = 512, 8  # a chunk is BLOCKS times BLOCK elements
TASKS_PER_LAUNCH = 16


@triton.jit
def _weighted_sum_backward_kernel(grad, base, finetuned, sums, numel, tasks, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    chunk = tl.program_id(0).to(tl.int64)
    for t in tl.static_range(len(finetuned)):
        total = tl.zeros([BLOCK], tl.float64)
        for block in range(BLOCKS):
            i = (chunk * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
            inside = i < numel
            g = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
            b = tl.load(base + i, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
            x = tl.load(finetuned[t] + i, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
            total += g * (x - b)
        tl.store(sums + chunk * tasks + t, tl.sum(total))


def weighted_sum_backward_triton(grads: list[Tensor], base: list[Tensor], finetuned: list[Tensor]) -> Tensor:
    """The op's own signature; `finetuned` is task-major [T * L]."""
    length = len(base)
    tasks = len(finetuned) // length if length else 0
    out = (base[0] if base else torch.empty(0)).new_zeros((tasks, length), dtype=torch.float64)
    for i, (g, b) in enumerate(zip(grads, base, strict=True)):
        if tasks and b.numel():
            out[:, i] = _one_tensor(g.contiguous(), b.contiguous(), [f.contiguous() for f in finetuned[i::length]])
    return out


def _one_tensor(grad: Tensor, base: Tensor, finetuned: list[Tensor]) -> Tensor:
    chunks, tasks = triton.cdiv(base.numel(), BLOCK * BLOCKS), len(finetuned)
    sums = base.new_empty((chunks, tasks), dtype=torch.float64)
    with torch.cuda.device_of(base):
        for first in range(0, tasks, TASKS_PER_LAUNCH):
            group = tuple(finetuned[first : first + TASKS_PER_LAUNCH])
            _weighted_sum_backward_kernel[(chunks,)](
                grad, base, group, sums[:, first:], base.numel(), tasks, BLOCK, BLOCKS
            )
    return sums.sum(0)


COMPILED = [
    (
        "_weighted_sum_backward_kernel",
        {
            "grad": f"*{kind}:16", "base": f"*{kind}:16", "finetuned": (f"*{kind}:16",) * tasks, "sums": "*fp64",
            "numel": "i32:16", "tasks": "i32",
        },
        {"BLOCK": BLOCK, "BLOCKS": BLOCKS},
    )
    for kind in ("fp32", "bf16", "fp16")
    for tasks in (8, TASKS_PER_LAUNCH)
]  # fmt: skip
