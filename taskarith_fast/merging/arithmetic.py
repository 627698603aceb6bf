"""Average and task arithmetic: one weighted sum over all tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from taskarith_fast.merging.common import State, check_compatible, copied, in_order_of, per_task
from taskarith_fast.ops import weighted_sum


def average(base: State, finetuned: Sequence[State]) -> dict[str, Tensor]:
    """The mean of the fine-tuned models, ``theta_0 + (1/T) sum_t tau_t``.

    Args:
        base: The pre-trained model; it cancels out, and gives the keys and the buffers.
        finetuned: T fine-tuned models.

    Returns:
        The merged state, in the key order of `base`.
    """
    tasks = len(finetuned)
    return _add(base, finetuned, [1.0 / max(tasks, 1)] * tasks)


def task_arithmetic(
    base: State, finetuned: Sequence[State], *, scale: float | Sequence[float] = 0.3
) -> dict[str, Tensor]:
    """Add scaled task vectors, ``theta_0 + sum_t scale_t (theta_t - theta_0)`` (Ilharco 2023, section 2).

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models theta_t.
        scale: lambda, one number for all tasks or one a task; negative numbers negate (forget) a task.

    Returns:
        The merged state, in the key order of `base`. The sum runs in task order in float64, rounded once.

    Raises:
        ArgumentError: If the number of scales is not T, or one is not finite.
        CheckpointError: If the models do not fit together.
    """
    return _add(base, finetuned, per_task("scale", scale, len(finetuned)))


def _add(base: State, finetuned: Sequence[State], weights: list[float]) -> dict[str, Tensor]:
    keys = check_compatible(base, finetuned)
    merged = copied(base, keys)
    sums = weighted_sum([base[k] for k in keys], [[model[k] for k in keys] for model in finetuned], weights)
    merged.update(zip(keys, sums, strict=True))
    return in_order_of(base, merged)
