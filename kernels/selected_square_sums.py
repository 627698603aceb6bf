"""selected_square_sums in Triton: a float64 sum a program, the programs' sums added in a fixed order after."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import load_double
from taskarith_fast.kernels._selection import (
    FORMS,
    SPLITS,
    TILE,
    programs,
    selected_entries,
    selected_range,
    selection_arguments,
)
from torch import Tensor


@triton.jit
def _selected_square_sums_kernel(
    x, items, offsets, RUNS: tl.constexpr, sums, numel, SPLITS: tl.constexpr, TILE: tl.constexpr
):
    begin, end = selected_range(offsets, numel, SPLITS, TILE)
    total = tl.zeros([TILE], tl.float64)
    for first in range(begin, end, SPLITS * TILE):
        j = first + tl.arange(0, TILE).to(tl.int64)
        inside = j < end
        value = load_double(x, selected_entries(items, offsets, j, inside, RUNS, SPLITS), inside)
        total += value * value
    tl.store(sums + tl.program_id(0), tl.sum(total))


def selected_square_sums_triton(
    tensors: list[Tensor], items: list[Tensor], offsets: list[Tensor], numels: list[int]
) -> Tensor:
    """The op's own signature."""
    out = (tensors[0] if tensors else torch.empty(0)).new_zeros(len(tensors), dtype=torch.float64)
    for i, x in enumerate(tensors):
        dense = x.numel() == numels[i]
        selection = selection_arguments(items[i], offsets[i]) if dense else (None, None, False)
        if x.numel():
            sums = out.new_empty(programs(x.numel()))
            with torch.cuda.device_of(x):
                _selected_square_sums_kernel[(len(sums),)](x.contiguous(), *selection, sums, x.numel(), SPLITS, TILE)
            out[i] = sums.sum()
    return out


COMPILED = [
    (
        "_selected_square_sums_kernel",
        {"x": f"*{kind}:16", **signature, "sums": "*fp64:16", "numel": "i32"},
        {**constants, "SPLITS": SPLITS, "TILE": TILE},
    )
    for kind in ("fp32", "bf16", "fp16")
    for signature, constants in FORMS
]
