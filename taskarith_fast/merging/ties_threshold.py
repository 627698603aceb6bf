"""The k-th largest magnitude of every task over all tensors, by counting: exact, in memory that does not grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from taskarith_fast.checkpoint.sources import TORCH_DTYPES, Source
from taskarith_fast.merging.pieces import Piece
from taskarith_fast.ops import count_magnitudes_
from taskarith_fast.ops.kth_magnitude import NAN_MAGNITUDE

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan

_LINES, _LINE = 2048, 64  # runs of entries in the sample, and how long they are
_FEW = 64  # lines: a smaller sample says too little
_SIGMAS = 4.5


@dataclass(frozen=True)
class Threshold:
    """Magnitude bits of a task's threshold; how many entries it keeps; of the ties with it, `ties` in order (None: all,
    or none where `cutoff` is 0)."""

    bits: int
    rank: int
    cutoff: int | None
    ties: int | None = None


@dataclass(frozen=True)
class _Search:
    """Task `task` is searched in magnitudes low..high, `1 << shift` of them to a counter."""

    task: int
    low: int
    high: int
    shift: int

    @staticmethod
    def over(task: int, low: int, high: int, bins: int) -> _Search:
        shift = 0
        while (high - low) >> shift >= bins:
            shift += 1
        return _Search(task, low, high, shift)


def find_thresholds(
    plan: Plan,
    rank: int,
    read: Callable[[str], Iterable[tuple[Piece, list[Tensor]]]],
    sample: Callable[[Sequence[tuple[str, int]]], list[Tensor]],
) -> list[Threshold]:
    """The `rank`-th largest magnitude of every task, and how many entries equal to it make up the rank.

    Args:
        plan: Its `bins` is the number of counters a task may have.
        rank: From 1, the same for all tasks; 0 where there is no entry.
        read: read(label) yields every piece with its tensors.
        sample: sample(lines) gives runs of entries (tensor, first one) of the base and every task, as `read_lines`.
    """
    if rank == 0:
        return [Threshold(0x7F800000, 0, 0)] * plan.tasks
    numel = sum(piece.numel for piece in plan.pieces)
    searches = [_Search.over(t, *bracket, plan.bins) for t, bracket in enumerate(_brackets(plan, rank, sample))]
    found: dict[int, Threshold] = {}
    while searches:
        width = max((s.high - s.low) >> s.shift for s in searches) + 1
        counts = torch.zeros(len(searches), width + 1, dtype=count_dtype(numel))
        for _, (base, *models) in read("thresholds"):
            counts = counts.to(base.device)
            brackets = ([s.low for s in searches], [s.high for s in searches], [s.shift for s in searches])
            count_magnitudes_(counts, base, [models[s.task] for s in searches], *brackets)
        after = [_narrow(s, row, rank, plan.bins) for s, row in zip(searches, counts.cpu(), strict=True)]
        found.update((s.task, x) for s, x in zip(searches, after, strict=True) if isinstance(x, Threshold))
        searches = [x for x in after if isinstance(x, _Search)]
    return [found[t] for t in range(plan.tasks)]


def count_dtype(numel: int) -> torch.dtype:
    """The smallest integers that count so many entries."""
    return torch.int32 if numel < 2**31 else torch.int64


def _narrow(search: _Search, counts: Tensor, rank: int, bins: int) -> Threshold | _Search:
    """The threshold, or where to look next."""
    above = int(counts[-1])
    if rank <= above:
        return _Search.over(search.task, search.high + 1, NAN_MAGNITUDE, bins)
    from_top = counts[:-1].flip(0).cumsum(0) + above
    if rank > int(from_top[-1]):
        return _Search.over(search.task, 0, search.low - 1, bins)
    index = int(torch.searchsorted(from_top, rank))
    column = counts.numel() - 2 - index
    low = search.low + (column << search.shift)
    if search.shift:
        return _Search.over(search.task, low, min(search.high, low + (1 << search.shift) - 1), bins)
    equal = int(counts[column])
    kept = rank - (int(from_top[index]) - equal)
    return Threshold(low, rank, None, None if kept == equal else kept)


def _brackets(
    plan: Plan, rank: int, sample: Callable[[Sequence[tuple[str, int]]], list[Tensor]]
) -> list[tuple[int, int]]:
    """Magnitudes between which the thresholds lie, most likely; all of them where the sample is too small."""
    numel = sum(piece.numel for piece in plan.pieces)
    lines = _sample_lines(plan, numel)
    if len(lines) < _FEW:
        return [(0, NAN_MAGNITUDE)] * plan.tasks
    base, *models = sample(lines)
    return [_bracket((model - base).view(torch.int32) & 0x7FFFFFFF, rank / numel) for model in models]


def _bracket(bits: Tensor, quantile: float) -> tuple[int, int]:
    """From a sample [lines, entries] in order: entries of a line are alike, and so are neighbouring lines, which lie
    in equal stretches; the spread of the estimate is that of what neighbouring lines differ by."""
    size = bits.numel()
    rank = min(int(quantile * size), size - 1)
    flat = -bits.reshape(-1).clamp(max=NAN_MAGNITUDE).numpy()  # ascending: the largest magnitude first
    middle = -int(np.partition(flat, rank)[rank])
    fractions = (bits > middle).float().mean(1)
    spread = math.sqrt(float(fractions.diff().square().mean()) / 2 / len(bits))
    margin = _SIGMAS * max(spread, 1 / size) * size + 2
    high, low = math.floor(quantile * size - margin), math.ceil(quantile * size + margin)
    order = np.partition(flat, [max(high, 0), min(low, size - 1)])
    return -int(order[low]) if low < size else 0, -int(order[high]) if high >= 0 else NAN_MAGNITUDE


def _sample_lines(plan: Plan, numel: int) -> list[tuple[str, int]]:
    """(tensor, first entry) of one line in each of equal stretches of all tensors; short tensors have none. Lines begin
    at multiples of their length."""
    generator = torch.Generator().manual_seed(0)
    count = min(_LINES, numel // (4 * _LINE))
    if count < _FEW:
        return []
    places = ((torch.arange(count) + torch.rand(count, generator=generator).double()) * (numel / count)).long()
    lines, start, i = [], 0, 0
    places_list = places.tolist()
    for name in plan.merged:
        size = plan.entries[name].numel
        while i < count and places_list[i] < start + size:
            if size >= _LINE:
                lines.append((name, min(places_list[i] - start, size - _LINE) // _LINE * _LINE))
            i += 1
        start += size
    return lines


def read_lines(source: Source, lines: Sequence[tuple[str, int]]) -> Tensor:
    """Entries [lines, _LINE] as float32."""
    out = torch.empty(len(lines), _LINE)
    for dtype in {source.entries[name].dtype for name, _ in lines}:
        chosen = [i for i, (name, _) in enumerate(lines) if source.entries[name].dtype == dtype]
        kind = TORCH_DTYPES[dtype]
        data = memoryview(bytearray(len(chosen) * _LINE * kind.itemsize))
        step = _LINE * kind.itemsize
        source.read_many(
            (lines[i][0], lines[i][1] * kind.itemsize, data[j * step : (j + 1) * step]) for j, i in enumerate(chosen)
        )
        out[chosen] = torch.frombuffer(data, dtype=kind).reshape(-1, _LINE).float()
    return out
