"""TIES for one tensor in Triton: what is kept, the vote, and both signs' totals, in one pass (csrc/math/ties.h)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import join, load_double, split
from torch import Tensor

from taskarith_fast.ops.kth_magnitude import row_count

BLOCK = 512
NAN_MAGNITUDE = tl.constexpr(0x7F800001)


@triton.jit
def _magnitude(x):
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _kept_delta(base, finetuned, limits, cutoffs, segment, position, row, tasks, i, inside, t: tl.constexpr):
    """Task t's delta in float64, zero where it is trimmed; `row` is the length of a segment, None if there is one."""
    if row is None:
        cell, place = segment * tasks + t, position + i
        limit, cutoff = tl.load(limits + cell), tl.load(cutoffs + cell)
    else:
        cell, place = (segment + i // row) * tasks + t, i % row
        limit, cutoff = tl.load(limits + cell, mask=inside, other=0.0), tl.load(cutoffs + cell, mask=inside, other=0)
    least = tl.minimum(_magnitude(limit), NAN_MAGNITUDE) + (place >= cutoff).to(tl.int32)
    start = load_double(base, i, inside)
    end = load_double(finetuned, i, inside)
    kept = _magnitude(end.to(tl.float32) - start.to(tl.float32)) >= least
    return tl.where(kept & inside, end - start, 0.0)


@triton.jit
def _ties_square_sums_kernel(
    base, finetuned, limits, cutoffs, segment, position, row, tasks, sums, numel, BLOCK: tl.constexpr
):
    block = tl.program_id(0).to(tl.int64)
    i = block * BLOCK + tl.arange(0, BLOCK)
    for t in tl.static_range(len(finetuned)):
        delta = _kept_delta(base, finetuned[t], limits, cutoffs, segment, position, row, tasks, i, i < numel, t)
        tl.store(sums + block * tasks + t, tl.sum(delta * delta))


@triton.jit
def _ties_merge_kernel(
    base, finetuned, limits, cutoffs, segment, position, row, tasks, shares, out, tally, majority, scale, undecided,
    numel, ELECT: tl.constexpr, COMBINE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    sign_of_zero = tl.cast(undecided, tl.float64)
    if majority is not None:  # merged already with +1: only where a zero vote mattered, and +1 was wrong
        most = tl.load(majority)
        if (most > 0) | (tl.load(tally + 2 * block + 1) == 0):
            return
        if COMBINE == "max":
            sign_of_zero = tl.where(most < 0, -1.0, 0.0).to(tl.float64)
        else:
            sign_of_zero = -sign_of_zero
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    vote = tl.zeros([BLOCK], tl.float64)
    plus = tl.zeros([BLOCK], tl.float64)
    minus = tl.zeros([BLOCK], tl.float64)
    above = tl.zeros([BLOCK], tl.int32)
    below = tl.zeros([BLOCK], tl.int32)
    for t in tl.static_range(len(finetuned)):
        delta = _kept_delta(base, finetuned[t], limits, cutoffs, segment, position, row, tasks, i, inside, t)
        up, down = tl.maximum(delta, 0.0), tl.minimum(delta, 0.0)
        above += (delta > 0).to(tl.int32)
        below += (delta < 0).to(tl.int32)
        if COMBINE == "max":
            plus, minus = tl.maximum(plus, up), tl.maximum(minus, -down)
        else:
            plus, minus = plus + up, minus + down
        if ELECT == "mass":
            vote += delta
        elif ELECT == "normmass":
            vote += delta * (delta * delta * tl.load(shares + t))
        elif ELECT == "normfrac":
            fraction = delta * delta * tl.load(shares + t)
            vote = tl.where(fraction > tl.abs(vote), tl.where(delta < 0, -fraction, fraction), vote)
    if ELECT == "count":
        vote = (above - below).to(tl.float64)
    sign = tl.where(vote > 0, 1.0, tl.where(vote < 0, -1.0, sign_of_zero)).to(tl.float64)
    merged = tl.where(sign > 0, plus, tl.where(sign < 0, minus, 0.0))
    if COMBINE == "max":
        merged *= sign
    elif COMBINE == "mean":
        merged /= tl.maximum(tl.where(sign > 0, above, below), 1).to(tl.float64)
    result = load_double(base, i, inside) + join(scale) * merged
    tl.store(out + i, result.to(tl.float32).to(out.dtype.element_ty), mask=inside)
    if tally is not None and majority is None:
        tl.store(tally + 2 * block, tl.sum((vote > 0).to(tl.int64) - (vote < 0).to(tl.int64)))
        tl.store(tally + 2 * block + 1, tl.max(((vote == 0) & (merged != 0)).to(tl.int64)))


class Part(NamedTuple):
    """One tensor with its tasks, and where its entries lie among the segments."""

    base: Tensor
    finetuned: tuple[Tensor, ...]
    limits: Tensor
    cutoffs: Tensor
    segment: int
    position: int
    row: int | None

    @property
    def blocks(self) -> int:
        return triton.cdiv(self.base.numel(), BLOCK)

    @property
    def arguments(self) -> tuple:
        return (*self, len(self.finetuned))


def parts(
    base: list[Tensor], finetuned: list[Tensor], thresholds: Tensor, cutoffs: Tensor, scope: str
) -> Iterator[tuple[int, Part]]:
    """The tensors that have entries, with their indices; `finetuned` is task-major [T * L], the tables are [S, T]."""
    thresholds, cutoffs = thresholds.contiguous(), cutoffs.contiguous()
    segment = position = 0
    for i, b in enumerate(base):
        if b.numel():
            tasks = tuple(f.contiguous() for f in finetuned[i :: len(base)])
            row = b.numel() // row_count(b) if scope == "row" else None
            yield i, Part(b.contiguous(), tasks, thresholds, cutoffs, segment, position, row)
        if scope == "global":
            position += b.numel()
        else:
            segment += row_count(b) if scope == "row" else 1


def square_sums(tensors: list[Part], tasks: int, like: Tensor) -> Tensor:
    """Each task's sum of squared kept deltas, float64 [T], on the device of `like`."""
    total = like.new_zeros(tasks, dtype=torch.float64)
    for part in tensors if tasks else ():
        sums = part.base.new_empty((part.blocks, tasks), dtype=torch.float64)
        with torch.cuda.device_of(part.base):
            _ties_square_sums_kernel[(part.blocks,)](*part.arguments, sums, part.base.numel(), BLOCK)
        total += sums.sum(0)
    return total


def merge(
    part: Part,
    out: Tensor,
    shares: Tensor,
    tally: Tensor | None,
    majority: Tensor | None,
    scale: float,
    elect: str,
    combine: str,
    undecided: float,
) -> None:
    """Merge one tensor into `out`; `tally` [blocks, 2] takes, or with `majority` gives, what zero votes mattered."""
    with torch.cuda.device_of(out):
        _ties_merge_kernel[(part.blocks,)](
            *part.arguments, shares, out, tally, majority, split(scale), undecided, out.numel(), elect, combine, BLOCK
        )


def _compiled(name: str, kind: str, row: bool, **rest: object) -> tuple[str, dict, dict]:
    """One launch of 8 tasks; what is no signature of an argument is a constant."""
    signature = {
        "base": f"*{kind}:16", "finetuned": (f"*{kind}:16",) * 8, "limits": "*fp32:16", "cutoffs": "*i64:16",
        "segment": "i32", "position": "i32", **({"row": "i32"} if row else {}), "tasks": "i32", "numel": "i32:16",
    }  # fmt: skip
    constants: dict = {"BLOCK": BLOCK} if row else {"BLOCK": BLOCK, "row": None}
    for argument, value in rest.items():
        (constants if argument.isupper() or value is None else signature)[argument] = value
    return name, signature, constants


_MERGE = {"shares": "*fp64:16", "tally": "*i64:16", "scale": ("fp32", "fp32"), "undecided": "fp32"}
COMPILED = [
    *(_compiled("_ties_square_sums_kernel", kind, row, sums="*fp64:16") for kind in ("fp32", "bf16") for row in (0, 1)),
    *(
        _compiled(
            "_ties_merge_kernel",
            kind,
            row,
            out=f"*{kind}:16",
            majority=majority,
            **_MERGE,
            ELECT=elect,
            COMBINE=combine,
        )
        for kind in ("fp32", "bf16")
        for row, majority, elect, combine in (
            (False, None, "mass", "mean"),
            (False, "*i64:16", "mass", "max"),
            (True, None, "normmass", "sum"),
            (False, None, "normfrac", "mean"),
        )
    ),
]
