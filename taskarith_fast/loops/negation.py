r"""Task negation: make a model forget one task and keep another (Ilharco 2023; TaLoS 2025, table 2).

    theta = theta_0 - scale tau
    scale = argmin acc_target(scale)  subject to  acc_control(scale) >= keep acc_control(0)

on validation images, with ``keep`` = 0.95 in the papers. Equality is allowed, scale 0 always is, and of equal target
accuracies the smallest scale wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.evaluate import Evaluation
from taskarith_fast.loops.merge import SCALES, EvaluateState
from taskarith_fast.progress import SILENT, Progress

_SLACK = 1e-12  # so that the product keep * accuracy does not refuse equality by its rounding


class Applicable(Protocol):
    """A task vector, dense or sparse."""

    def apply(self, base: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class NegationPoint:
    """One scale, and how the model does there."""

    scale: float
    """How much of the task vector is subtracted."""
    evaluations: Mapping[str, Evaluation]
    """Task name -> evaluation, target and control."""
    allowed: bool
    """Whether the control task keeps enough."""


@dataclass(frozen=True, eq=False)
class NegationResult:
    """What a search found."""

    best: NegationPoint
    """The allowed point with the lowest target accuracy."""
    points: tuple[NegationPoint, ...]
    """Every point, by ascending scale."""


def search_negation(
    base: Mapping[str, Tensor],
    task_vector: Applicable,
    evaluate_state: EvaluateState,
    *,
    target: str,
    control: str,
    scales: Sequence[float] = SCALES,
    keep: float = 0.95,
    progress: Progress | None = None,
) -> NegationResult:
    """Choose how much of a task vector to subtract.

    Args:
        base: The pre-trained state theta_0.
        task_vector: tau of the target task, dense or sparse.
        evaluate_state: State -> evaluations of `target` and `control` on VALIDATION images.
        target: The task to be forgotten.
        control: The task to be kept.
        scales: Scales to try, not negative; 0 is always tried.
        keep: Share of the control accuracy at scale 0 that must be left, in [0, 1].
        progress: Shows a bar.

    Raises:
        ArgumentError: If `keep` or a scale is out of its domain, or target and control are one task.
    """
    return search_scale_of_negation(
        lambda scale: evaluate_state(task_vector.apply(base, scale=-scale)),
        target=target, control=control, scales=scales, keep=keep, progress=progress,
    )  # fmt: skip


def search_scale_of_negation(
    evaluate_at: Callable[[float], Mapping[str, Evaluation]],
    *,
    target: str,
    control: str,
    scales: Sequence[float] = SCALES,
    keep: float = 0.95,
    progress: Progress | None = None,
) -> NegationResult:
    """`search_negation` for any model: `evaluate_at` says how it does with so much of the task vector subtracted."""
    if target == control:
        raise ArgumentError(f"control must be another task than the target, got {control!r} for both")
    if not 0 <= keep <= 1:
        raise ArgumentError(f"keep must be in [0, 1], got {keep}")
    if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
        raise ArgumentError(f"scales must not be negative, got {list(scales)}")
    points: list[NegationPoint] = []
    grid = sorted({0.0, *scales})
    with (progress or SILENT).stage(f"negate {target}", len(grid)) as stage:
        for scale in grid:
            found = evaluate_at(scale)
            least = keep * (points[0].evaluations if points else found)[control].accuracy
            points.append(NegationPoint(scale, found, found[control].accuracy >= least - _SLACK))
            stage.advance(note=f"{found[target].accuracy:.3f}")
    best = min((p for p in points if p.allowed), key=lambda p: (p.evaluations[target].accuracy, p.scale))
    return NegationResult(best, tuple(points))
