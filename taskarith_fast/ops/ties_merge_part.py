r"""Merge a part of a model by TIES, and tally what the rest of the model has to know.

The arithmetic of ties_merge, for models too large to be held at once. Two of its rules look at all tensors:
the sign of undecided coordinates (``zero_sign="global_majority"``) and the norms of "normfrac" and
"normmass". Here both come from outside, as `undecided` and `shares`, and the tally says what the part adds
to the majority: the sum of its elected signs, and whether a zero vote mattered in it, so that it must be
merged again should the majority turn out otherwise. `ties_square_sums` adds up the norms.

Parts of 16384 k elements, in order, give the bytes of ties_merge on the whole. Not differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops.ties_merge import combine_deltas, kept_deltas, merged_tensors, task_votes

SCHEMA = (
    "(Tensor[] base, Tensor[] finetuned, Tensor thresholds, Tensor cutoffs, Tensor shares, float scale, "
    "str elect, str combine, float undecided, str scope) -> Tensor[]"
)


def ties_merge_part_reference(
    base: list[Tensor],
    finetuned: list[Tensor],
    thresholds: Tensor,
    cutoffs: Tensor,
    shares: Tensor,
    scale: float,
    elect: str,
    combine: str,
    undecided: float,
    scope: str,
) -> list[Tensor]:
    """The formulas in float64; the L merged tensors, and the tally, shape [2], int64, after them."""
    if not base:
        return [thresholds.new_zeros(2, dtype=torch.int64)]
    flat, deltas = kept_deltas(base, finetuned, thresholds, cutoffs, scope)
    votes = task_votes(deltas, elect, shares)
    merged = combine_deltas(deltas, torch.where(votes == 0, undecided, votes.sign()), combine)
    tally = torch.stack([votes.sign().sum().long(), ((votes == 0) & (merged != 0)).any().long()])
    return [*merged_tensors(base, flat + scale * merged), tally]


def ties_merge_part_fake(
    base: list[Tensor],
    finetuned: list[Tensor],
    thresholds: Tensor,
    cutoffs: Tensor,
    shares: Tensor,
    scale: float,
    elect: str,
    combine: str,
    undecided: float,
    scope: str,
) -> list[Tensor]:
    merged = [torch.empty_like(b, memory_format=torch.contiguous_format) for b in base]
    return [*merged, thresholds.new_empty(2, dtype=torch.int64)]


OP = define_op("ties_merge_part", SCHEMA, ties_merge_part_reference, ties_merge_part_fake, triton=True)


def ties_merge_part(
    base: list[Tensor],
    finetuned: list[list[Tensor]],
    thresholds: Tensor,
    cutoffs: Tensor,
    shares: Tensor,
    *,
    scale: float = 1.0,
    elect: str = "mass",
    combine: str = "mean",
    undecided: float = 1.0,
    scope: str = "global",
    backend: str = "auto",
) -> tuple[list[Tensor], int, bool]:
    """Merge a part of a model.

    Args:
        base: L tensors, whole or cut.
        finetuned: T lists of L tensors like `base`.
        thresholds: As for ties_merge, shape [S, T].
        cutoffs: As for ties_merge, counted in the part, shape [S, T], int64.
        shares: One over each task's sum of squared kept deltas over the whole model, shape [T], float64, on
            the device of `base`; used by the two norm rules.
        scale: Factor on the merged delta.
        elect: As for ties_merge.
        combine: As for ties_merge.
        undecided: +1, -1 or 0, the sign where the vote is zero.
        scope: As for ties_merge.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        The merged tensors, the sum of the elected signs, and whether deltas were merged where the vote is zero.
        With `undecided` 0 nothing is, and the last is False.

    Raises:
        BackendError: If `backend` is absent.
    """
    lists = [tensor for task in finetuned for tensor in task]
    rules = (float(scale), elect, combine, float(undecided), scope)
    *merged, tally = OP(base, lists, thresholds, cutoffs, shares, *rules, backend=backend)
    signs, mattered = tally.tolist()
    return merged, signs, bool(mattered)
