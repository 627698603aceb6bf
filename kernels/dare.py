"""dare in Triton: a Philox block decides eight elements, four and the four that lie 32 further on."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import half_word, load_double, philox_block
from torch import Tensor

BLOCKS = 128  # Philox blocks of a program


@triton.jit
def _half_words(counter, level, key, half):
    w = philox_block(counter, level, key)
    return half_word((w[0][:, None], w[1][:, None], w[2][:, None], w[3][:, None]), half).to(tl.int32)


@triton.jit
def _dare_kernel(
    base, out, finetuned, weights, streams, begin, table_stride, numel, last_high, last_low, BLOCKS: tl.constexpr
):
    counter = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    half = tl.arange(0, 8)[None, :]
    i = (counter // 8 * 64 + counter % 8 * 4)[:, None] + (half % 4 + half // 4 * 32)
    inside = i < numel
    counter += tl.load(begin) // 8  # of the tensor of which this is a piece; pieces begin at multiples of 64
    start = load_double(base, i, inside)
    total = start
    for t in tl.static_range(len(finetuned)):
        key = tl.load(streams + t * table_stride)
        drawn = _half_words(counter, 0, key, half)
        kept = drawn < last_high
        undecided = drawn == last_high
        if tl.max(tl.max(undecided.to(tl.int32), 1), 0) > 0:  # one element in 65,536
            kept = kept | (undecided & (_half_words(counter, 1, key, half) <= last_low))
        delta = load_double(finetuned[t], i, inside) - start
        total += tl.where(kept, tl.load(weights + t * table_stride) * delta, 0.0)
    tl.store(out + i, total.to(tl.float32).to(out.dtype.element_ty), mask=inside)


def dare_triton(
    base: list[Tensor], finetuned: list[Tensor], weights: Tensor, streams: Tensor, threshold: int, begins: Tensor
) -> list[Tensor]:
    """The op's own signature; `finetuned` is task-major [T * L], the tables are [T, L], `begins` is [L]."""
    last = threshold - 1
    weights, streams, begins = weights.contiguous(), streams.contiguous(), begins.contiguous()
    results = []
    for i, b in enumerate(base):
        tasks = tuple(f.contiguous() for f in finetuned[i :: len(base)])
        out = (torch.empty_like if tasks else torch.clone)(b, memory_format=torch.contiguous_format)
        if b.numel() and tasks:
            with torch.cuda.device_of(b):
                _dare_kernel[(triton.cdiv(b.numel(), 64 * BLOCKS // 8),)](
                    b.contiguous(), out, tasks, weights[:, i:], streams[:, i:], begins[i:], len(base),
                    b.numel(), last >> 16, last & 0xFFFF, BLOCKS,
                )  # fmt: skip
        results.append(out)
    return results


COMPILED = [
    (
        "_dare_kernel",
        {
            "base": f"*{kind}:16", "out": f"*{kind}:16", "finetuned": (f"*{kind}:16",) * 8, "weights": "*fp64",
            "streams": "*i64", "begin": "*i64", "table_stride": "i32", "numel": "i32:16", "last_high": "i32",
            "last_low": "i32",
        },
        {"BLOCKS": BLOCKS},
    )
    for kind in ("fp32", "bf16")
]  # fmt: skip
