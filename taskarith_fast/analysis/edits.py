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

Point = tuple[float, ...]


class Edits(Protocol):
    """One model on every point of the space that T task vectors span, and V tasks to judge it by."""

    tasks: Sequence[str]
    """Names of the V tasks."""
    vectors: int
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


def accuracy(edits: Edits, point: Sequence[float], task: str) -> float:
    """Share of one task's images that are classified correctly at a point."""
    correct = predictions(edits, point, task) == edits.labels(task)
    return int(correct.sum()) / len(correct)


def single(vectors: int, index: int, scale: float = 1.0) -> Point:
    """The point with one task vector alone, at this scale."""
    return tuple(scale if t == index else 0.0 for t in range(vectors))


def stderr(accuracy: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Binomial standard errors sqrt(p (1 - p) / N); NaN stays NaN."""
    return np.sqrt(accuracy * (1 - accuracy) / images)
