"""Selected entries in Triton (taskarith_fast/ops/selection.py): every form is read as compact position -> entry.

A program takes every SPLITS-th tile of one block of 65,536 entries.
"""

from __future__ import annotations

import torch
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
def selected_entries(items, starts, offsets, j, inside, SPLITS: tl.constexpr):
    """The entries at the compact positions j; `starts` holds each run's first compact position, None without runs."""
    block = tl.program_id(0).to(tl.int64) // SPLITS
    if offsets is None:
        entries = j
    elif starts is None:
        entries = block * 65536 + (tl.load(items + j, mask=inside, other=0).to(tl.int64) & 0xFFFF)
    else:
        low = tl.zeros_like(j) + tl.load(offsets + 2 * block + 1)  # the last run that starts at j or before
        high = tl.zeros_like(j) + tl.load(offsets + 2 * block + 3)
        for _ in range(16):  # a block has at most 32,768 runs
            middle = (low + high) // 2
            before = tl.load(starts + middle, mask=inside & (low < middle), other=0) <= j
            low, high = tl.where(before, middle, low), tl.where(before, high, middle)
        first = tl.load(items + 2 * low, mask=inside, other=0).to(tl.int64) & 0xFFFF
        entries = block * 65536 + first + (j - tl.load(starts + low, mask=inside, other=0))
    return entries


def selection_arguments(items: Tensor, offsets: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """items, starts, offsets, as the kernels take them."""
    if not offsets.numel():
        return None, None, None
    if items.dim() == 1:
        return items, None, offsets
    lengths = (items[:, 1].long() & 0xFFFF) + 1
    return items, torch.cumsum(lengths, 0) - lengths, offsets


def programs(numel: int) -> int:
    """How many programs go over a tensor."""
    return triton.cdiv(numel, 65536) * SPLITS
