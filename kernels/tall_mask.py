"""tall_mask in Triton: the sum of all deltas first, then every task's comparison, eight flags a byte."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import load_double
from torch import Tensor

BYTES = 64


@triton.jit
def total_delta(finetuned, start, place, inside):
    """tau_MT in float64: the deltas added in the order of the tasks."""
    total = tl.zeros_like(start)
    for t in tl.static_range(len(finetuned)):
        total += load_double(finetuned[t], place, inside) - start
    return total


@triton.jit
def is_needed(delta, lambdas, t, total):
    """Whether task t needs an entry."""
    return tl.abs(delta) > tl.load(lambdas + t) * tl.abs(total - delta)


@triton.jit
def _tall_mask_kernel(base, bits, finetuned, lambdas, numel, row, BYTES: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)[None, :]
    i = byte[:, None] * 8 + bit
    inside = i < numel
    start = load_double(base, i, inside)
    total = total_delta(finetuned, start, i, inside)
    for t in tl.static_range(len(finetuned)):
        delta = load_double(finetuned[t], i, inside) - start
        flags = (is_needed(delta, lambdas, t, total) & inside).to(tl.int32)
        tl.store(bits + tl.cast(row, tl.int64) * t + byte, tl.sum(flags << bit, 1).to(tl.uint8), mask=byte * 8 < numel)


def tall_mask_triton(base: list[Tensor], finetuned: list[Tensor], lambdas: Tensor) -> list[Tensor]:
    """The op's own signature; `finetuned` is task-major [T * L]."""
    masks = []
    for i, b in enumerate(base):
        tasks = tuple(f.contiguous() for f in finetuned[i :: len(base)])
        bits = b.new_empty((len(tasks), (b.numel() + 7) // 8), dtype=torch.uint8)
        if bits.numel():
            with torch.cuda.device_of(b):
                _tall_mask_kernel[(triton.cdiv(bits.shape[1], BYTES),)](
                    b.contiguous(), bits, tasks, lambdas.contiguous(), b.numel(), bits.shape[1], BYTES
                )
        masks.append(bits)
    return masks


COMPILED = [
    (
        "_tall_mask_kernel",
        {
            "base": f"*{kind}:16", "bits": "*u8:16", "finetuned": (f"*{kind}:16",) * 8, "lambdas": "*fp64:16",
            "numel": "i32", "row": "i32",
        },
        {"BYTES": BYTES},
    )
    for kind in ("fp32", "bf16", "fp16")
]  # fmt: skip
