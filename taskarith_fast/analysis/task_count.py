r"""Accuracy against the number of tasks merged, over all subsets (Hazimeh 2024, figure 6; CART 2024, figure 6).

For each non-empty subset S of the V tasks, the models of S are merged at a scale and judged on the tasks of S. The
scale is one for all, or chosen for each subset on validation images (Hazimeh 2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskarith_fast.analysis.edits import Edits, accuracy, check_grid, check_one_vector_a_task, images_of
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
    accuracy: np.ndarray
    """Shape [Z, V]; NaN for tasks outside of the subset."""
    single: np.ndarray
    """Accuracy of each task's own model, shape [V]."""
    images: np.ndarray
    """Images of each task, int64 [V]."""

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
    found = np.full((len(subsets), len(tasks)), np.nan)
    chosen = np.full(len(subsets), grid[0])
    with progress.stage("subsets", answers) as bar:
        own = single_task(edits, bar)
        reference = single_task(validation) if validation is not None and len(grid) > 1 else own
        for z, subset in enumerate(subsets):
            if validation is not None and len(grid) > 1:
                scores = [normalized(_judge(validation, subset, scale, bar), reference) for scale in grid]
                chosen[z] = grid[int(np.argmax(scores))]
            found[z] = _judge(edits, subset, chosen[z], bar)
    members = np.array([[v in subset for v in range(len(tasks))] for subset in subsets])
    return TaskCount(members, chosen, found, own, images_of(edits))


def _judge(edits: Edits, subset: Sequence[int], scale: float, bar: Stage) -> np.ndarray:
    """Accuracies of one subset's merge on its tasks, NaN elsewhere, shape [V]."""
    point = [scale if t in subset else 0.0 for t in range(edits.vectors)]
    found = np.full(len(edits.tasks), np.nan)
    for v in subset:
        found[v] = accuracy(edits, point, edits.tasks[v])
        bar.advance()
    return found
