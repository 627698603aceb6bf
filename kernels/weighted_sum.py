"""weighted_sum in Triton: one launch a tensor, the sum over tasks in float64, one rounding at the end."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
# The loop over tasks is unrolled. More tasks pass float64 sums from launch to launch: still one rounding.
TASKS_PER_LAUNCH = 16


@triton.jit
def _weighted_sum_kernel(
    base, out, partial, finetuned, weights, weights_stride, numel,
    FIRST: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    start = tl.load(base + i, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
    if FIRST:
        total = start
    else:
        total = tl.load(partial + i, mask=inside, other=0.0)
    for t in tl.static_range(len(finetuned)):
        x = tl.load(finetuned[t] + i, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        total += tl.load(weights + t * weights_stride) * (x - start)
    if LAST:
        tl.store(out + i, total.to(tl.float32).to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(partial + i, total, mask=inside)


def weighted_sum_triton(base: list[Tensor], finetuned: list[Tensor], weights: Tensor) -> list[Tensor]:
    """The op's own signature: `finetuned` is task-major [T * L], `weights` float64 [T, L], one device."""
    length, tasks = len(base), weights.shape[0]
    out = []
    for i, b in enumerate(base):
        with torch.cuda.device_of(b):
            out.append(_one_tensor(b, [finetuned[t * length + i] for t in range(tasks)], weights[:, i]))
    return out


def _one_tensor(base: Tensor, finetuned: list[Tensor], weights: Tensor) -> Tensor:
    base, finetuned = base.contiguous(), [f.contiguous() for f in finetuned]
    out = torch.empty_like(base)
    tasks, numel = len(finetuned), base.numel()
    if numel == 0:
        return out
    partial = out.new_empty(numel if tasks > TASKS_PER_LAUNCH else 0, dtype=torch.float64)
    for first in range(0, max(tasks, 1), TASKS_PER_LAUNCH):
        group = tuple(finetuned[first : first + TASKS_PER_LAUNCH])
        _weighted_sum_kernel[(triton.cdiv(numel, BLOCK),)](
            base, out, partial, group, weights[first:], weights.stride(0), numel,
            FIRST=first == 0, LAST=first + TASKS_PER_LAUNCH >= tasks, BLOCK=BLOCK,
        )  # fmt: skip
    return out


COMPILED = [
    (
        "_weighted_sum_kernel",
        {
            "base": f"*{kind}:16", "out": f"*{kind}:16", "partial": "*fp64:16", "finetuned": (f"*{kind}:16",) * tasks,
            "weights": "*fp64", "weights_stride": "i32", "numel": "i32:16",
        },
        {"FIRST": first, "LAST": last, "BLOCK": BLOCK},
    )
    for kind in ("fp32", "bf16", "fp16")
    for tasks, first, last in ((8, True, True), (TASKS_PER_LAUNCH, True, False), (1, False, True))
]  # fmt: skip
