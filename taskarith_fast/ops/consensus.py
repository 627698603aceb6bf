r"""Merge only the weights that several tasks need (Consensus, Wang 2024, section 5).

``out = base + scale [sum_t m_t >= threshold] tau_MT`` with the TALL masks m_t and the sum of task deltas
tau_MT of ``tall_mask``. Masks and sums exist in registers only: T + 1 reads and one write of every element.
Everything is computed in float64 and rounded once; where too few tasks agree, the result is the base, bit by
bit. threshold = 0 keeps every entry (task arithmetic), 1 drops those that no task needs, 2 the selfish ones
too (the paper's choice).

Not differentiable: comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import check_lists, task_major
from taskarith_fast.ops.tall_mask import lambda_table, needed, task_deltas, total_delta

SCHEMA = "(Tensor[] base, Tensor[] finetuned, Tensor lambdas, int threshold, float scale) -> Tensor[]"


def consensus_reference(
    base: list[Tensor], finetuned: list[Tensor], lambdas: Tensor, threshold: int, scale: float
) -> list[Tensor]:
    """The formula in float64, tensor by tensor; `finetuned` is task-major [T * L]."""
    out = []
    for i, b in enumerate(base):
        deltas = task_deltas(base, finetuned, i)
        agreed = needed(deltas, lambdas).sum(0) >= threshold
        merged = b.double() + scale * total_delta(deltas)
        out.append(torch.where(agreed, merged, b.double()).to(b.dtype).contiguous())
    return out


def consensus_fake(
    base: list[Tensor], finetuned: list[Tensor], lambdas: Tensor, threshold: int, scale: float
) -> list[Tensor]:
    return [torch.empty_like(b, memory_format=torch.contiguous_format) for b in base]


OP = define_op("consensus", SCHEMA, consensus_reference, consensus_fake, triton=True)


def consensus(
    base: Sequence[Tensor],
    finetuned: Sequence[Sequence[Tensor]],
    lambdas: Tensor | Sequence[float],
    *,
    threshold: int,
    scale: float = 1.0,
    backend: str = "auto",
) -> list[Tensor]:
    """Add the sum of all task deltas to the base where enough tasks need it.

    Args:
        base: L tensors of any shapes, float32, bfloat16 or float16.
        finetuned: T lists of L tensors, each with the shape, dtype and device of its base tensor.
        lambdas: One mask threshold a task, shape [T], nonnegative.
        threshold: How many tasks must need an entry, at least 0; more than T gives the base.
        scale: Factor of the merged delta.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L new contiguous tensors like `base`, within one unit in the last place of the float64 result.

    Raises:
        ArgumentError: If lists, shapes or dtypes do not fit together, or a number is out of its domain.
        BackendError: If `backend` is absent.
    """
    base = list(base)
    if not isinstance(threshold, int) or not 0 <= threshold < 2**31:
        raise ArgumentError(f"threshold must be a whole number of tasks, at least 0; got {threshold!r}")
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}")
    table = lambda_table(lambdas, base, len(finetuned))
    check_lists(base, finetuned)
    return OP(base, task_major(finetuned), table, threshold, scale, backend=backend) if base else []
