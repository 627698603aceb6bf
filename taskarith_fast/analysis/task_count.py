r"""Accuracy against the number of tasks merged, over all subsets (Hazimeh 2024, figure 6; CART 2024, figure 6).

For each non-empty subset S of the V tasks, the models of S are merged at a scale and judged on the tasks of S. The
scale is one for all, or chosen for each subset on validation images (Hazimeh 2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskarith_fast.analysis.edits import Edits, check_grid, check_one_vector_a_task, images_of, mean_by_task, right
from taskarith_fast.analysis.lambda_curve import normalized, single_task
from taskarith_fast.errors import ArgumentError
from taskarith_fast.progress import SILENT, Progress, Stage


@dataclass(frozen=True, eq=False)
class TaskCount:
    """Accuracies of every subset of V tasks, by ascending size: Z = 2^V - 1 of them, or fewer if sizes were given."""

    members: np.ndarray
    """Which tasks a subset has, bool [Z, V]."""
    scale: np.ndarray
    """The scale of each subset's merge, float64 [Z]."""
    correct: np.ndarray
    """Which images a subset's merge has right, task after task, bool [Z, sum N_v]; False for tasks outside of it."""
    correct_single: np.ndarray
    """Which images each task's own model has right, bool [sum N_v]."""
    images: np.ndarray
    """Images of each task N_v, int64 [V]."""

    @property
    def accuracy(self) -> np.ndarray:
        """Shape [Z, V]; NaN for tasks outside of the subset."""
        return np.where(self.members, mean_by_task(self.correct, self.images), np.nan)

    @property
    def single(self) -> np.ndarray:
        """Accuracy of each task's own model, shape [V]."""
        return mean_by_task(self.correct_single, self.images)

    @property
    def mean(self) -> np.ndarray:
        """Mean accuracy over a subset's tasks, shape [Z]."""
        return np.nanmean(self.accuracy, axis=1)

    @property
    def normalized(self) -> np.ndarray:
        """Mean over a subset's tasks of accuracy / single, shape [Z]."""
        return normalized(self.accuracy, self.single)


def task_count(
    edits: Edits,
    *,
    scales: Sequence[float] = (0.3,),
    validation: Edits | None = None,
    sizes: Sequence[int] | None = None,
    progress: Progress = SILENT,
) -> TaskCount:
    """Merge and judge every subset of the tasks: V 2^(V - 1) answers a scale.

    Args:
        edits: T task vectors, the t-th of task t, and the images to judge by.
        scales: One scale, or several to choose among for each subset: the best normalized accuracy on the validation
            images, the smallest scale of equals.
        validation: The same task vectors and tasks with validation images; needed for several scales.
        sizes: Sizes of subsets; all if None.
        progress: Shows a bar.

    Raises:
        ArgumentError: If there is not one task vector a task, `validation` is missing, or a size is out of its domain.
    """
    grid, tasks = np.sort(check_grid("scales", scales)), check_one_vector_a_task(edits)
    if len(grid) > 1 and validation is None:
        raise ArgumentError(f"validation must be given to choose among {len(grid)} scales, got None")
    wanted = range(1, len(tasks) + 1) if sizes is None else sorted(set(sizes))
    if not wanted or not all(1 <= size <= len(tasks) for size in wanted):
        raise ArgumentError(f"sizes must be numbers from 1 to {len(tasks)}, got {list(sizes or ())}")
    subsets = [s for size in wanted for s in itertools.combinations(range(len(tasks)), size)]
    answers = sum(len(s) for s in subsets) * (1 + (len(grid) if len(grid) > 1 else 0)) + len(tasks)
    chosen = np.full(len(subsets), grid[0])
    with progress.stage("subsets", answers) as bar:
        own = _single_tasks(edits, bar)
        found = np.zeros((len(subsets), len(own)), dtype=bool)
        reference = single_task(validation) if validation is not None and len(grid) > 1 else None
        for z, subset in enumerate(subsets):
            if validation is not None and reference is not None:
                scores = [_score(validation, subset, scale, reference, bar) for scale in grid]
                chosen[z] = grid[int(np.argmax(scores))]
            found[z] = np.concatenate(_judge(edits, subset, chosen[z], bar))
    members = np.array([[v in subset for v in range(len(tasks))] for subset in subsets])
    return TaskCount(members, chosen, found, own, images_of(edits))


def _single_tasks(edits: Edits, bar: Stage) -> np.ndarray:
    """Which images each task's own model has right, bool [sum N_v]."""
    return np.concatenate([_judge(edits, [v], 1.0, bar)[v] for v in range(edits.vectors)])


def _score(edits: Edits, subset: Sequence[int], scale: float, reference: np.ndarray, bar: Stage) -> float:
    """Normalised accuracy of one subset's merge, by which its scale is chosen."""
    judged = _judge(edits, subset, scale, bar)
    return float(np.mean([judged[v].mean() / reference[v] for v in subset]))


def _judge(edits: Edits, subset: Sequence[int], scale: float, bar: Stage) -> list[np.ndarray]:
    """Which images one subset's merge has right, bool [N_v] of each task; none of those outside of it."""
    point = [scale if t in subset else 0.0 for t in range(edits.vectors)]
    found = [np.zeros(len(edits.labels(task)), dtype=bool) for task in edits.tasks]
    for v in subset:
        found[v] = right(edits, point, edits.tasks[v])
        bar.advance()
    return found
