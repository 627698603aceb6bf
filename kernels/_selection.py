"""Selected entries in Triton (taskarith_fast/ops/selection.py): every form is read as compact position -> entry.

A program takes every SPLITS-th tile of one block of 65,536 entries.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

SPLITS, TILE = 16, 512


@triton.jit
def selected_range(offsets, numel, SPLITS: tl.constexpr, TILE: tl.constexpr):
    """The compact positions of the program's block: where its own first tile begins, and the end."""
    block, part = tl.program_id(0).to(tl.int64) // SPLITS, tl.program_id(0) % SPLITS
    if offsets is None:
        begin, end = block * 65536, tl.minimum(block * 65536 + 65536, numel)
    else:
        begin, end = tl.load(offsets + 2 * block), tl.load(offsets + 2 * block + 2)
    return begin + part * TILE, end


@triton.jit
def selected_entries(items, offsets, j, inside, RUNS: tl.constexpr, SPLITS: tl.constexpr):
    """The entries at the compact positions j; `items` are RUNS or positions."""
    block = tl.program_id(0).to(tl.int64) // SPLITS
    if offsets is None:
        entries = j
    elif RUNS:
        number = j - tl.load(offsets + 2 * block)
        low = tl.zeros_like(j) + tl.load(offsets + 2 * block + 1)  # the last run that starts at j or before
        high = tl.zeros_like(j) + tl.load(offsets + 2 * block + 3)
        for _ in range(16):  # a block has at most 32,768 runs
            middle = (low + high) // 2
            before = _load_item(items + 2 * middle + 1, inside & (low < middle)) <= number
            low, high = tl.where(before, middle, low), tl.where(before, high, middle)
        shift = _load_item(items + 2 * low, inside) - _load_item(items + 2 * low + 1, inside)
        entries = block * 65536 + number + shift
    else:
        entries = block * 65536 + _load_item(items + j, inside)
    return entries


@triton.jit
def _load_item(place, inside):
    return tl.load(place, mask=inside, other=0).to(tl.int64) & 0xFFFF


def selection_arguments(items: Tensor, offsets: Tensor) -> tuple[Tensor | None, Tensor | None, bool]:
    """items, offsets, RUNS, as the kernels take them."""
    return (items, offsets, items.dim() == 2) if offsets.numel() else (None, None, False)


def programs(numel: int) -> int:
    """How many programs go over a tensor."""
    return triton.cdiv(numel, 65536) * SPLITS


# COMPILED's signature and constants of every form: all, positions, runs.
FORMS: tuple[tuple[dict[str, str], dict[str, bool | None]], ...] = (
    ({}, {"items": None, "offsets": None, "RUNS": False}),
    ({"items": "*i16:16", "offsets": "*i64:16"}, {"RUNS": False}),
    ({"items": "*i16:16", "offsets": "*i64:16"}, {"RUNS": True}),
)
