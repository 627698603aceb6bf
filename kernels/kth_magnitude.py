"""kth_magnitude in Triton: rows and short tensors by a program each, longer segments digit by digit over the device."""

from __future__ import annotations

import torch
from taskarith_fast.kernels._magnitude_ranks import parts_of, select, select_rows
from torch import Tensor

from taskarith_fast.ops.kth_magnitude import row_count, segment_count

SHORT = 65536  # entries up to which a program selects by itself


def kth_magnitude_triton(
    base: list[Tensor], finetuned: list[Tensor], k: list[int], scope: str
) -> tuple[Tensor, Tensor]:
    """The op's own signature; `finetuned` is task-major [T * L]."""
    tasks, segments = len(finetuned) // len(base) if base else 0, segment_count(base, scope)
    ranks = (base[0] if base else torch.empty(0)).new_zeros((segments, tasks), dtype=torch.int64)
    keys, cutoffs, kept = (torch.zeros_like(ranks) for _ in range(3))
    if tasks:
        parts = parts_of(base, finetuned)
        if scope == "global":
            kept.fill_(k[0])
            cutoffs[0] = select(parts, keys[0], kept[0].clone())
        else:
            _select_apart(parts, k, scope, keys, cutoffs, kept)
    thresholds = (0x7FFFFFFF - keys).to(torch.int32).view(torch.float32)
    return torch.where(kept > 0, thresholds, torch.inf), torch.where(kept > 0, cutoffs, 0)


def _select_apart(parts: list[tuple], k: list[int], scope: str, keys: Tensor, cutoffs: Tensor, kept: Tensor) -> None:
    """Segments that do not reach over tensors; the tables are [S, T], `kept` takes each segment's k."""
    segment = 0
    for part, rank in zip(parts, k, strict=True):
        rows = row_count(part[0]) if scope == "row" else 1
        here = slice(segment, segment + rows)
        segment += rows
        numel = part[0].numel()
        if numel:
            kept[here] = rank
            if scope == "row" or numel <= SHORT:
                select_rows(part, numel // rows, rank, keys[here], cutoffs[here])
            else:
                cutoffs[here] = select([part], keys[here][0], kept[here][0].clone())
