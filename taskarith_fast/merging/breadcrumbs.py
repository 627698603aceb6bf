"""Model Breadcrumbs: keep the middle of every row of the task vectors (Davari 2024)."""

from __future__ import annotations

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
    per_task,
)
from taskarith_fast.ops import breadcrumbs as breadcrumbs_op

SCOPES = ("row", "tensor")


def breadcrumbs(
    base: State,
    finetuned: Sequence[State],
    *,
    density: float = 0.2,
    outliers: float = 0.1,
    scope: str = "row",
    scale: float | Sequence[float] = 0.4,
) -> dict[str, Tensor]:
    """Add task vectors without their largest and smallest entries, ``theta_0 + sum_t scale_t m_t tau_t``.

    In every row of n entries (last dimension, as the published code) or every tensor, the ``int(n outliers)``
    largest magnitudes are removed and the ``int(n density)`` next ones kept, exactly: of equal magnitudes the
    entry with the lower position ranks higher. If fewer are left, all of them are kept. So a row too short to
    keep one entry (``int(n density) = 0``) gives the base, and a 0-d tensor, as published, is added whole.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models.
        density: Fraction kept, in (0, 1]; the paper's beta.
        outliers: Fraction removed at the top, in [0, 1); the paper's gamma.
        scope: "row" or "tensor": where n entries are counted.
        scale: alpha, one number for all tasks or one a task.

    Returns:
        The merged state, in the key order of `base`, each tensor rounded once from float64.

    Raises:
        ArgumentError: If a parameter is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    check_fraction("density", density)
    if not 0.0 <= outliers < 1.0:
        raise ArgumentError(f"outliers must be in [0, 1), got {outliers}")
    check_choice("scope", scope, SCOPES)
    scales = per_task("scale", scale, len(finetuned))
    keys = check_compatible(base, finetuned)
    merged = copied(base, keys)
    rows = [[_rows(model[k], scope) for k in keys] for model in (base, *finetuned)]
    counts = [_counts(tensor, density, outliers) for tensor in rows[0]]
    with torch.no_grad():
        sums = breadcrumbs_op(rows[0], rows[1:], scales, [r for r, _ in counts], [k for _, k in counts])
    merged.update((k, total.reshape(base[k].shape)) for k, total in zip(keys, sums, strict=True))
    return in_order_of(base, merged)


def _rows(tensor: Tensor, scope: str) -> Tensor:
    """The tensor with the rows to count in along its last dimension."""
    return tensor.reshape(-1) if scope == "tensor" and tensor.dim() else tensor


def _counts(tensor: Tensor, density: float, outliers: float) -> tuple[int, int]:
    """How many entries of a row to remove, and to keep then."""
    if tensor.dim() == 0:
        return 0, 1
    n = tensor.shape[-1]
    removed = int(n * outliers)
    return removed, min(int(n * density), n - removed)
