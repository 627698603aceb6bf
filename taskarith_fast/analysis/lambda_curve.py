r"""Accuracy of a merged model along the scale lambda (Hazimeh 2024, figure 2; Ilharco 2023).

acc[i, v] = accuracy of theta_0 + lambda_i sum_t tau_t on task v
normalized[i] = (1/V) sum_v acc[i, v] / acc(theta_0 + tau_v on task v)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskarith_fast.analysis.edits import Edits, accuracy, check_grid, check_one_vector_a_task, images_of, single
from taskarith_fast.progress import SILENT, Progress, Stage


@dataclass(frozen=True, eq=False)
class LambdaCurve:
    """Accuracies at S scales."""

    scales: np.ndarray
    """Shape [S], float64."""
    accuracy: np.ndarray
    """Shape [S, V]."""
    single: np.ndarray
    """Accuracy of each task's own model, scale 1, on that task, shape [V]."""
    images: np.ndarray
    """Images of each task, int64 [V]."""

    @property
    def normalized(self) -> np.ndarray:
        """Mean over the tasks of accuracy / single, shape [S]."""
        return normalized(self.accuracy, self.single)


def lambda_curve(edits: Edits, *, scales: Sequence[float], progress: Progress = SILENT) -> LambdaCurve:
    """Evaluate the sum of all task vectors at every scale, and each alone: (S + 1) V answers.

    Args:
        edits: T task vectors, the t-th of task t.
        scales: S scales.
        progress: Shows a bar.

    Raises:
        ArgumentError: If the grid is empty or not finite, or there is not one task vector a task.
    """
    grid, tasks = check_grid("scales", scales), check_one_vector_a_task(edits)
    found = np.zeros((len(grid), len(tasks)))
    with progress.stage("lambda curve", found.size + len(tasks)) as bar:
        own = single_task(edits, bar)
        for i, scale in enumerate(grid):
            for v, task in enumerate(tasks):
                found[i, v] = accuracy(edits, (scale,) * edits.vectors, task)
                bar.advance()
    return LambdaCurve(grid, found, own, images_of(edits))


def single_task(edits: Edits, bar: Stage | None = None) -> np.ndarray:
    """Accuracy of each task's own model on it, shape [V]: V answers."""
    own = []
    for v, task in enumerate(check_one_vector_a_task(edits)):
        own.append(accuracy(edits, single(edits.vectors, v), task))
        if bar is not None:
            bar.advance()
    return np.array(own)


def normalized(found: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Mean over the last axis of accuracies / single-task accuracies; NaN accuracies (no such task) do not count.

    NaN if a task that counts has a single-task accuracy of 0.
    """
    ratio, member = found / np.where(own > 0, own, np.nan), ~np.isnan(found)
    return np.where(member, ratio, 0).sum(-1) / member.sum(-1)
