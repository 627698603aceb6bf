"""TIES-Merging: trim every task vector, elect a sign for each coordinate, merge what agrees (Yadav 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.merging.common import (
    State,
    check_compatible,
    check_fraction,
    copied,
    in_order_of,
)
from taskarith_fast.ops.kth_magnitude import SCOPES, kth_magnitude, row_count
from taskarith_fast.ops.ties_merge import COMBINES, ELECTS, ZERO_SIGNS, ties_merge

COUNT_RULES = ("exact", "official", "talos")
EVERY_TIE = torch.iinfo(torch.int64).max


def ties(
    base: State,
    finetuned: Sequence[State],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    elect: str = "mass",
    combine: str = "mean",
    count_rule: str = "exact",
    zero_sign: str = "global_majority",
    scope: str = "global",
) -> dict[str, Tensor]:
    """Merge by TIES: ``theta_0 + scale m``, with m the combined deltas of the elected signs.

    With n entries in the flattened task vector (keys sorted by name), `count_rule` keeps of each task

    * "exact": ``max(1, int(density n))`` entries, of equal magnitudes at the border the first ones;
    * "official": those at least as large as the ``int(density n) + 1``-th largest, as the published code;
    * "talos": those larger than the ``int((1 - density) n)``-th smallest, as in the code of TaLoS.

    Elections and combinations are those of `ops.ties_merge`. The thresholds cost one read of all models, the
    merge a second one.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models.
        density: Fraction kept of each task vector, in (0, 1]; 1 keeps everything under every rule.
        scale: lambda, not divided by T.
        elect: "mass", "count", "normfrac" or "normmass".
        combine: "mean", "sum" or "max".
        count_rule: "exact", "official" or "talos".
        zero_sign: "global_majority", "plus" or "zero": the sign of a coordinate whose votes cancel.
        scope: Where n entries are counted: "global", "tensor" or "row" (last dimension).

    Returns:
        The merged state, in the key order of `base`, each tensor rounded once from float64.

    Raises:
        ArgumentError: If a parameter is out of its domain, or there is no model.
        CheckpointError: If the models do not fit together, or hold NaN or Inf.
    """
    check_fraction("density", density)
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}")
    check_choice("elect", elect, ELECTS)
    check_choice("combine", combine, COMBINES)
    check_choice("count_rule", count_rule, COUNT_RULES)
    check_choice("zero_sign", zero_sign, ZERO_SIGNS)
    check_choice("scope", scope, SCOPES)
    keys = check_compatible(base, finetuned)
    merged = copied(base, keys)
    with torch.no_grad():
        start = [base[k] for k in keys]
        models = [[model[k] for k in keys] for model in finetuned]
        thresholds, cutoffs = trim(start, models, density, count_rule, scope)
        sums = ties_merge(
            start,
            models,
            thresholds,
            cutoffs,
            scale=scale,
            elect=elect,
            combine=combine,
            zero_sign=zero_sign,
            scope=scope,
        )
    merged.update(zip(keys, sums, strict=True))
    return in_order_of(base, merged)


def agreeing_models(base: State, finetuned: Sequence[State], *, density: float = 0.2) -> list[dict[str, Tensor]]:
    """Undo in each model what TIES would drop of it: ``theta_0 + tau'_t``, with ``tau'_t`` the trimmed deltas whose
    sign is the elected one (Yadav 2023; the task vectors of AdaMerging++, Yang 2024).

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models theta_t.
        density: Fraction kept of each task vector before the signs are elected by mass, in (0, 1].

    Returns:
        T new states in the key order of `base`; every weight is that of theta_t or that of theta_0. Their deltas
        sum to the delta of `ties` with combine="sum".

    Raises:
        ArgumentError: If `density` is out of its domain, or there is no model.
        CheckpointError: If the models do not fit together, or hold NaN or Inf.
    """
    check_fraction("density", density)
    keys = check_compatible(base, finetuned)
    start = [base[k] for k in keys]
    models = [[model[k] for k in keys] for model in finetuned]
    states = []
    with torch.no_grad():
        thresholds, cutoffs = trim(start, models, density, "exact", "global")
        elected = ties_merge(start, models, thresholds, cutoffs, combine="sum")
        for t, model in enumerate(models):
            own = slice(t, t + 1)
            trimmed = ties_merge(start, [model], thresholds[:, own], cutoffs[:, own], combine="sum")
            for b, e, x, f in zip(start, elected, trimmed, model, strict=True):
                # A sum of agreeing deltas never rounds away: it is at least as far from the base as each of them.
                agrees = torch.where(e > b, x > b, (e < b) & (x < b))
                x.copy_(torch.where(agrees, f, b))
            states.append(in_order_of(base, copied(base, keys) | dict(zip(keys, trimmed, strict=True))))
    return states


def trim(
    base: list[Tensor], finetuned: list[list[Tensor]], density: float, count_rule: str, scope: str
) -> tuple[Tensor, Tensor]:
    """Thresholds and cutoffs, [S, T] each, for `ops.ties_merge`."""
    if scope == "global":
        sizes, repeats = [sum(b.numel() for b in base)], [1]
    elif scope == "tensor":
        sizes, repeats = [b.numel() for b in base], [1] * len(base)
    else:
        sizes, repeats = [b.shape[-1] if b.dim() else 1 for b in base], [row_count(b) for b in base]
    kept = [kept_entries(count_rule, density, size) for size in sizes]
    thresholds, cutoffs = kth_magnitude(base, finetuned, [k for k, _ in kept], scope=scope)
    if count_rule == "exact":
        return thresholds, cutoffs
    ties = torch.tensor([c for (_, c), n in zip(kept, repeats, strict=True) for _ in range(n)], dtype=torch.int64)
    return thresholds, ties.to(cutoffs.device)[:, None].expand_as(cutoffs)


def kept_entries(count_rule: str, density: float, size: int) -> tuple[int, int]:
    """The rank of the threshold among `size` entries, and the cutoff of its ties where the rule ignores k."""
    if size == 0 or density == 1.0:
        return size, EVERY_TIE
    if count_rule == "exact":
        return max(1, int(density * size)), EVERY_TIE
    if count_rule == "official":
        return min(int(density * size) + 1, size), EVERY_TIE
    dropped = int(round(1.0 - density, 12) * size)  # 1 - 0.9 is 0.0999...98 in binary
    return (size - dropped + 1, 0) if dropped else (size, EVERY_TIE)
