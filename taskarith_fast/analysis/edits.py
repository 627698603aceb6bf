"""What an analysis asks of edited models: their answers on each task's images, for any scales of the task vectors.

    theta(s) = theta_0 + sum_t s_t tau_t

How the answers come about (weights written in place, or a linearized model's derivatives) is no matter here; see
`loops.edits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from taskarith_fast.errors import ArgumentError

Point = tuple[float, ...]


class Edits(Protocol):
    """One model on every point of the space that T task vectors span, and V tasks to judge it by."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the V tasks."""

    @property
    def vectors(self) -> int:
        """T, the number of task vectors."""

    def features(self, point: Sequence[float], task: str) -> Tensor:
        """The encoder's features of one task's images, float [N, D], on the CPU or where the encoder is.

        Args:
            point: One scale a task vector, T numbers.
            task: A name of `tasks`.
        """

    def logits(self, point: Sequence[float], task: str) -> Tensor:
        """What the task's head makes of `features`, shape [N, C]; arguments as there."""

    def labels(self, task: str) -> Tensor:
        """The labels of one task's images, int64 [N], on the device of the features."""


def predictions(edits: Edits, point: Sequence[float], task: str) -> Tensor:
    """The classes predicted at a point, int64 [N]; of equal logits the first wins."""
    return edits.logits(point, task).argmax(dim=-1)


def right(edits: Edits, point: Sequence[float], task: str) -> np.ndarray:
    """Which of one task's images are classified correctly at a point, bool [N]."""
    return (predictions(edits, point, task) == edits.labels(task)).cpu().numpy()


def accuracy(edits: Edits, point: Sequence[float], task: str) -> float:
    """Share of one task's images that are classified correctly at a point."""
    return float(right(edits, point, task).mean())


def mean_by_task(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Means [..., V] of values [..., N] of the images of V tasks, N_v of each, one task's after the other's."""
    parts = np.split(values, np.cumsum(images)[:-1], axis=-1)
    return np.stack([part.mean(-1) for part in parts], axis=-1)


def single(vectors: int, index: int, scale: float = 1.0) -> Point:
    """The point with one task vector alone, at this scale."""
    return tuple(scale if t == index else 0.0 for t in range(vectors))


def images_of(edits: Edits) -> np.ndarray:
    """How many images each task has, int64 [V]."""
    return np.array([len(edits.labels(task)) for task in edits.tasks], dtype=np.int64)


def stderr(accuracy: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Binomial standard errors sqrt(p (1 - p) / N) of accuracies [..., V] on N images [V]; NaN stays NaN."""
    return np.sqrt(accuracy * (1 - accuracy) / images)


def check_one_vector_a_task(edits: Edits) -> Sequence[str]:
    """The tasks, if there is one task vector for each; ArgumentError otherwise."""
    if edits.vectors != len(edits.tasks):
        raise ArgumentError(f"edits must have one task vector a task, got {edits.vectors} for {len(edits.tasks)} tasks")
    return edits.tasks


def check_grid(name: str, values: Sequence[float]) -> np.ndarray:
    """The argument `name` as float64, if it is a list of finite numbers that is not empty; ArgumentError otherwise."""
    try:
        grid = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        grid = np.empty(0)
    if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
        raise ArgumentError(f"{name} must be a list of at least one finite number, got {values!r}")
    return grid
