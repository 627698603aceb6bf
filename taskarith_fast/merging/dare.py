"""DARE: drop most of every task vector at random, rescale the rest, then merge (Yu 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.common import (
    State,
    check_compatible,
    check_fraction,
    copied,
    in_order_of,
    per_task,
)
from taskarith_fast.merging.ties import ties
from taskarith_fast.ops import dare as dare_op
from taskarith_fast.ops.dare import stream


def dare(
    base: State,
    finetuned: Sequence[State],
    *,
    density: float = 0.1,
    scale: float | Sequence[float] = 0.3,
    rescale: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Task arithmetic on dropped task vectors, ``theta_0 + sum_t scale_t m_t tau_t / density``.

    Every entry of every floating tensor is kept with probability `density`, independently. The random numbers
    depend on the seed, the task's position, the tensor's name and the entry's index alone: not on threads,
    shards, or which other tensors the model has. One pass; no dropped model exists.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models.
        density: Probability to keep an entry, in (0, 1]; the papers' drop rate is 1 - density. 1 is task
            arithmetic.
        scale: lambda, one number for all tasks or one a task.
        rescale: Divide what is kept by `density`, so that the expectation stays.
        seed: Any integer.

    Returns:
        The merged state, in the key order of `base`, each tensor rounded once from float64.

    Raises:
        ArgumentError: If a parameter is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    scales = per_task("scale", scale, len(finetuned))
    factor = drop_factor(density, rescale, seed)
    return _drop(base, finetuned, [s * factor for s in scales], range(len(finetuned)), density, seed)


def dare_ties(
    base: State,
    finetuned: Sequence[State],
    *,
    density: float = 0.1,
    rescale: bool = True,
    seed: int = 0,
    ties_density: float = 0.2,
    scale: float = 1.0,
    elect: str = "mass",
    combine: str = "mean",
    count_rule: str = "exact",
    zero_sign: str = "global_majority",
    scope: str = "global",
) -> dict[str, Tensor]:
    """TIES on dropped task vectors: `dare+ties`.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models.
        density: Probability to keep an entry under DARE, in (0, 1].
        rescale: Divide what DARE keeps by `density`.
        seed: Any integer.
        ties_density: Fraction that TIES then keeps of each task vector; at or above `density` it trims next
            to nothing.
        scale: lambda of TIES.
        elect: As for `ties`.
        combine: As for `ties`.
        count_rule: As for `ties`.
        zero_sign: As for `ties`.
        scope: As for `ties`.

    Returns:
        The merged state, in the key order of `base`. The dropped models are in the models' dtype, one
        rounding more.

    Raises:
        ArgumentError: If a parameter is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    check_fraction("ties_density", ties_density)
    dropped = dare_models(base, finetuned, density=density, rescale=rescale, seed=seed)
    return ties(
        base,
        dropped,
        density=ties_density,
        scale=scale,
        elect=elect,
        combine=combine,
        count_rule=count_rule,
        zero_sign=zero_sign,
        scope=scope,
    )


def dare_models(
    base: State, finetuned: Sequence[State], *, density: float = 0.1, rescale: bool = True, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Drop and rescale, for any other method to merge: T models ``theta_0 + m_t tau_t / density``.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models.
        density: Probability to keep an entry, in (0, 1].
        rescale: Divide what is kept by `density`.
        seed: Any integer; the masks are those of `dare` with the same seed.

    Returns:
        T states in the key order of `base`, each rounded once; dropped entries equal the base bit by bit.

    Raises:
        ArgumentError: If a parameter is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    factor = drop_factor(density, rescale, seed)
    check_compatible(base, finetuned)
    return [_drop(base, [model], [factor], [t], density, seed) for t, model in enumerate(finetuned)]


def drop_factor(density: float, rescale: bool, seed: int) -> float:
    """The factor of what is kept; ArgumentError if an argument is out of its domain."""
    check_fraction("density", density)
    if not isinstance(seed, int):
        raise ArgumentError(f"seed must be an integer, got {seed!r}")
    return 1.0 / density if rescale else 1.0


def _drop(
    base: State,
    finetuned: Sequence[State],
    weights: list[float],
    tasks: Sequence[int],
    density: float,
    seed: int,
) -> dict[str, Tensor]:
    keys = check_compatible(base, finetuned)
    merged = copied(base, keys)
    streams = [[stream(seed, t, k) for k in keys] for t in tasks]
    models = [[model[k] for k in keys] for model in finetuned]
    with torch.no_grad():
        sums = dare_op([base[k] for k in keys], models, weights, streams, density=density)
    merged.update(zip(keys, sums, strict=True))
    return in_order_of(base, merged)
