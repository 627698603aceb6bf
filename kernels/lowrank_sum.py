"""lowrank_sum in Triton: the tasks' deltas are formed in registers, for Gram matrices and for projections."""

from __future__ import annotations

from taskarith_fast.kernels._gram import Differences, factors_of
from torch import Tensor

from taskarith_fast.ops.lowrank_sum import sum_in_groups


def lowrank_sum_triton(base: list[Tensor], finetuned: list[Tensor], rank: list[int], svd: str) -> list[Tensor]:
    """The op's own signature: `finetuned` is task-major [T * L], one device; both methods are one, in float64."""

    def factors(part: list[tuple[Tensor, list[Tensor]]], r: int) -> tuple[Tensor, Tensor, Tensor]:
        return factors_of([Differences(tuple(f.contiguous() for f in models), b.contiguous()) for b, models in part], r)

    return sum_in_groups(base, finetuned, rank, factors)
