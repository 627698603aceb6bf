"""Thresholds of task deltas in Triton: cells [segments, T] of selections over long segments, or a program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._radix import (
    BINS,
    PASSES,
    TIES,
    TILE,
    TILES,
    choose_digit,
    digit_counts,
    magnitude_keys,
    narrowed,
)
from torch import Tensor


@triton.jit
def _count_digits_kernel(base, finetuned, prefix, counts, numel, number, TILE: tl.constexpr, TILES: tl.constexpr):
    begin = tl.program_id(0).to(tl.int64) * (TILE * TILES)
    bins = tl.arange(0, BINS)
    for t in tl.static_range(len(finetuned)):
        known = tl.load(prefix + t)
        found = tl.zeros([BINS], tl.int32)
        for tile in range(TILES):
            i = begin + tile * TILE + tl.arange(0, TILE)
            inside = i < numel
            found += digit_counts(magnitude_keys(base, finetuned[t], i, inside), known, inside, number)
        tl.atomic_add(counts + t * BINS + bins, found.to(tl.int64), mask=found > 0)


@triton.jit
def _count_ties_kernel(base, finetuned, prefix, left, equal, ties, numel, TIES: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    i = block * TIES + tl.arange(0, TIES)
    for t in tl.static_range(len(finetuned)):
        if equal is None or tl.load(left + t) < tl.load(equal + t):
            keys = magnitude_keys(base, finetuned[t], i, i < numel)
            tied = (keys == tl.load(prefix + t).to(tl.uint32)) & (i < numel)
            tl.store(ties + block * len(finetuned) + t, tl.sum(tied.to(tl.int64)))


@triton.jit
def _find_last_tie_kernel(base, finetuned, prefix, left, ties, reached, cutoffs, position, numel, TIES: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, TIES)
    i = block * TIES + place
    for t in tl.static_range(len(finetuned)):
        end = tl.load(reached + block * len(finetuned) + t)
        wanted = tl.load(left + t) - (end - tl.load(ties + block * len(finetuned) + t))
        if (wanted > 0) & (tl.load(left + t) <= end):
            keys = magnitude_keys(base, finetuned[t], i, i < numel)
            tied = ((keys == tl.load(prefix + t).to(tl.uint32)) & (i < numel)).to(tl.int32)
            last = tl.sum(tl.where((tied != 0) & (tl.cumsum(tied, 0) == wanted), place, 0))
            tl.store(cutoffs + t, position + block * TIES + last + 1)


@triton.jit
def _select_rows_kernel(base, finetuned, keys, cutoffs, row, k, TILE: tl.constexpr):
    cell = tl.program_id(0).to(tl.int64) * len(finetuned)
    start = tl.program_id(0).to(tl.int64) * row
    for t in tl.static_range(len(finetuned)):
        prefix, left, equal = tl.zeros([], tl.int64), tl.zeros([], tl.int64) + k, tl.zeros([], tl.int64)
        for number in range(3):
            found = tl.zeros([BINS], tl.int32)
            for first in range(0, row, TILE):
                i = first + tl.arange(0, TILE)
                at = magnitude_keys(base + start, finetuned[t] + start, i, i < row)
                found += digit_counts(at, prefix, i < row, number)
            prefix, left, equal = narrowed(found.to(tl.int64), prefix, left, number)
        cutoff = tl.zeros([], tl.int64) + row
        if left < equal:
            cutoff = tl.zeros([], tl.int64)
            before = tl.zeros([], tl.int64)
            for first in range(0, row, TILE):
                i = first + tl.arange(0, TILE)
                at = magnitude_keys(base + start, finetuned[t] + start, i, i < row)
                tied = ((at == prefix.to(tl.uint32)) & (i < row)).to(tl.int32)
                rank = before + tl.cumsum(tied, 0)
                cutoff += tl.sum(tl.where((tied != 0) & (rank == left), i + 1, 0))
                before += tl.sum(tied)
        tl.store(keys + cell + t, prefix)
        tl.store(cutoffs + cell + t, cutoff)


Part = tuple[Tensor, tuple[Tensor, ...]]  # one contiguous tensor of the base that has entries, and every task's


def parts_of(base: list[Tensor], finetuned: list[Tensor]) -> list[Part]:
    """The tensors in order, contiguous; `finetuned` is task-major [T * L]."""
    return [(b.contiguous(), tuple(f.contiguous() for f in finetuned[i :: len(base)])) for i, b in enumerate(base)]


def select_rows(part: Part, row: int, k: int, keys: Tensor, cutoffs: Tensor) -> None:
    """Select in every row of one tensor; `keys` and `cutoffs` are int64 [rows, T]."""
    base, models = part
    if keys.numel():
        with torch.cuda.device_of(base):
            _select_rows_kernel[(base.numel() // row,)](base, models, keys, cutoffs, row, k, **_row_options(row))


def _row_options(row: int) -> dict[str, int]:
    tile = min(max(triton.next_power_of_2(row), 256), TILE)
    return {"TILE": tile, "num_warps": 8 if tile > 512 else 4}  # 1024 entries on four warps would spill


def select(parts: list[Part], keys: Tensor, left: Tensor) -> Tensor:
    """Select in one segment of several tensors: `keys` [T] become the k-th of rank `left` [T]; gives cutoffs [T]."""
    counts = keys.new_zeros((keys.numel(), BINS.value))
    equal = torch.zeros_like(keys)
    keys.zero_()
    parts = [(base, models) for base, models in parts if base.numel()]
    for number in range(PASSES):
        for base, models in parts:
            with torch.cuda.device_of(base):
                _count_digits_kernel[(triton.cdiv(base.numel(), TILE * TILES),)](
                    base, models, keys, counts, base.numel(), number, TILE, TILES
                )
        with torch.cuda.device_of(keys):
            choose_digit(counts, keys, left, equal, number)
    cutoffs = torch.full_like(keys, sum(base.numel() for base, _ in parts))
    position, before = 0, torch.zeros_like(keys)
    for part in parts:
        before = find_last_ties(part, keys, left, equal, cutoffs, position, before)
        position += part[0].numel()
    return cutoffs


def find_last_ties(
    part: Part, keys: Tensor, left: Tensor, equal: Tensor | None, cutoffs: Tensor, position: int, before: Tensor
) -> Tensor:
    """Put the end of the `left`-th tie into `cutoffs`, if it lies in this tensor; gives the ties up to its end.

    Nothing is read for tasks of which all `equal` ties belong to the selection. All tables are [T].
    """
    base, models = part
    ties = keys.new_zeros((triton.cdiv(base.numel(), TIES), len(models)))
    grid = (len(ties),)
    with torch.cuda.device_of(base):
        _count_ties_kernel[grid](base, models, keys, left, equal, ties, base.numel(), TIES)
        reached = before + ties.cumsum(0)
        _find_last_tie_kernel[grid](base, models, keys, left, ties, reached, cutoffs, position, base.numel(), TIES)
    return reached[-1]


def _compiled(name: str, kind: str, tables: tuple[str, ...], **constants: object) -> tuple[str, dict, dict]:
    """One launch of 4 tasks, whose code is the same."""
    signature = {"base": f"*{kind}:16", "finetuned": (f"*{kind}:16",) * 4} | dict.fromkeys(tables, "*i64:16")
    numbers = {
        "_count_digits_kernel": ("numel", "number"),
        "_select_rows_kernel": ("row", "k"),
        "_find_last_tie_kernel": ("numel", "position"),
    }
    return name, signature | dict.fromkeys(numbers.get(name, ("numel",)), "i32"), constants


COMPILED = [
    compiled
    for kind in ("fp32", "bf16", "fp16")
    for compiled in (
        _compiled("_count_digits_kernel", kind, ("prefix", "counts"), TILE=TILE, TILES=TILES),
        _compiled("_count_ties_kernel", kind, ("prefix", "left", "equal", "ties"), TIES=TIES),
        _compiled("_count_ties_kernel", kind, ("prefix", "left", "ties"), equal=None, TIES=TIES),
        _compiled("_find_last_tie_kernel", kind, ("prefix", "left", "ties", "reached", "cutoffs"), TIES=TIES),
        *(_compiled("_select_rows_kernel", kind, ("keys", "cutoffs"), **_row_options(row)) for row in (64, 768, TILE)),
    )
]
