"""TALL masks and Consensus: which merged weights each task needs, and which several need (Wang 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.common import State, check_compatible, copied, in_order_of, per_task
from taskarith_fast.ops import consensus as consensus_op
from taskarith_fast.ops import tall_mask as tall_mask_op
from taskarith_fast.ops import weighted_sum, where_bits


def tall_mask(
    base: State, finetuned: Sequence[State], *, tall_lambda: float | Sequence[float] = 0.4
) -> list[dict[str, Tensor]]:
    """One model a task from one merged model and a mask a task: ``theta_0 + m_t sum_u tau_u``.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models.
        tall_lambda: Threshold of the masks (see `tall_masks`), one number for all tasks or one a task; the
            paper chooses it for each task on validation data.

    Returns:
        T states in the key order of `base`. Where a task's mask is off they equal the base bit by bit; where
        it is on, ``theta_0 + sum_u tau_u``, rounded once.

    Raises:
        ArgumentError: If a threshold is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    masks = tall_masks(base, finetuned, tall_lambda=tall_lambda)
    keys = list(masks)
    start = [base[k] for k in keys]
    with torch.no_grad():
        merged = weighted_sum(start, [[model[k] for k in keys] for model in finetuned], [1.0] * len(finetuned))
        out = []
        for t in range(len(finetuned)):
            state = copied(base, keys)
            state.update(zip(keys, where_bits([masks[k][t] for k in keys], merged, start), strict=True))
            out.append(in_order_of(base, state))
    return out


def tall_masks(
    base: State, finetuned: Sequence[State], *, tall_lambda: float | Sequence[float] = 0.4
) -> dict[str, Tensor]:
    """The masks, packed: entry j is on for task t if ``|tau_t| > tall_lambda_t |sum_u tau_u - tau_t|``.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models.
        tall_lambda: One number for all tasks or one a task, not negative; larger ones keep less. A single
            task is kept wherever it changed anything.

    Returns:
        Name -> uint8 tensor [T, ceil(numel / 8)] for every floating tensor, bits as in `ops.pack_bits`.

    Raises:
        ArgumentError: If a threshold is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    keys = check_compatible(base, finetuned)
    lambdas = _lambdas(tall_lambda, len(finetuned))
    with torch.no_grad():
        masks = tall_mask_op([base[k] for k in keys], [[model[k] for k in keys] for model in finetuned], lambdas)
    return dict(zip(keys, masks, strict=True))


def consensus(
    base: State,
    finetuned: Sequence[State],
    *,
    threshold: int = 2,
    scale: float = 1.0,
    tall_lambda: float | Sequence[float] = 0.4,
) -> dict[str, Tensor]:
    """Keep what enough tasks need: ``theta_0 + scale [sum_t m_t >= threshold] sum_t tau_t``.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models.
        threshold: How many tasks must need an entry, from 0 (task arithmetic) to T; 2 drops what no task or
            one needs.
        scale: lambda, one number.
        tall_lambda: Threshold of the masks, one number for all tasks or one a task.

    Returns:
        The merged state, in the key order of `base`, each tensor rounded once from float64.

    Raises:
        ArgumentError: If a parameter is out of its domain; with fewer tasks than `threshold` nothing would be
            left. CheckpointError: If the models do not fit together.
    """
    keys = check_compatible(base, finetuned)
    tasks = len(finetuned)
    if not isinstance(threshold, int) or not 0 <= threshold <= tasks:
        raise ArgumentError(
            f"threshold must be a whole number from 0 to {tasks}, the number of tasks; got {threshold!r}"
        )
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}")
    lambdas = _lambdas(tall_lambda, tasks)
    merged = copied(base, keys)
    models = [[model[k] for k in keys] for model in finetuned]
    with torch.no_grad():
        sums = consensus_op([base[k] for k in keys], models, lambdas, threshold=threshold, scale=scale)
    merged.update(zip(keys, sums, strict=True))
    return in_order_of(base, merged)


def _lambdas(tall_lambda: float | Sequence[float], tasks: int) -> list[float]:
    lambdas = per_task("tall_lambda", tall_lambda, tasks)
    if any(x < 0 for x in lambdas):
        raise ArgumentError(f"tall_lambda must not be negative, got {tall_lambda}")
    return lambdas
