"""breadcrumbs in Triton: both thresholds of every row by a program a row, then one pass that merges what is kept."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import load_double
from taskarith_fast.kernels._magnitude_ranks import parts_of, select_rows
from taskarith_fast.kernels._radix import magnitude_keys
from torch import Tensor

from taskarith_fast.ops.breadcrumbs import row_size

BLOCK = 512


@triton.jit
def _is_among(keys, place, limits, cutoffs, cell, inside):
    """Whether entries at `place` of their row are among the first of its order."""
    limit = tl.load(limits + cell, mask=inside, other=0).to(tl.uint32)
    return (keys < limit) | ((keys == limit) & (place < tl.load(cutoffs + cell, mask=inside, other=0)))


@triton.jit
def _breadcrumbs_kernel(
    base, finetuned, weights, weights_stride, limits, cutoffs, table, row, out, numel, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    start = load_double(base, i, inside)
    total = start
    for t in tl.static_range(len(finetuned)):
        keys = magnitude_keys(base, finetuned[t], i, inside)
        cell = i // row * len(finetuned) + t
        removed = _is_among(keys, i % row, limits, cutoffs, cell, inside)
        kept = _is_among(keys, i % row, limits + table, cutoffs + table, cell, inside)
        delta = tl.where(kept & (removed == 0), load_double(finetuned[t], i, inside) - start, 0.0)
        total += tl.load(weights + t * weights_stride) * delta
    tl.store(out + i, total.to(tl.float32).to(out.dtype.element_ty), mask=inside)


def breadcrumbs_triton(
    base: list[Tensor], finetuned: list[Tensor], weights: Tensor, removed: list[int], kept: list[int]
) -> list[Tensor]:
    """The op's own signature; `finetuned` is task-major [T * L], `weights` [T, L]."""
    out = []
    for i, part in enumerate(parts_of(base, finetuned)):
        b, models = part
        out.append(torch.empty_like(b) if models else b.clone())
        if b.numel() and models:
            row = row_size(b)
            limits = b.new_empty((2, b.numel() // row, len(models)), dtype=torch.int64)
            cutoffs = torch.empty_like(limits)
            for table, rank in enumerate((removed[i], removed[i] + kept[i])):
                select_rows(part, row, rank, limits[table], cutoffs[table])
            with torch.cuda.device_of(b):
                _breadcrumbs_kernel[(triton.cdiv(b.numel(), BLOCK),)](
                    b, models, weights[:, i], weights.stride(0), limits, cutoffs, limits[0].numel(), row, out[i],
                    b.numel(), BLOCK,
                )  # fmt: skip
    return out


COMPILED = [
    (
        "_breadcrumbs_kernel",
        {
            "base": f"*{kind}:16", "finetuned": (f"*{kind}:16",) * 8, "weights": "*fp64", "weights_stride": "i32",
            "limits": "*i64:16", "cutoffs": "*i64:16", "table": "i32", "row": "i32", "out": f"*{kind}:16",
            "numel": "i32",
        },
        {"BLOCK": BLOCK},
    )
    for kind in ("fp32", "bf16", "fp16")
]  # fmt: skip
