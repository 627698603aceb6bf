r"""Do edits act on their own task only? Accuracies of changed models relative to the model before (TaLoS 2025).

    ratio[r, v] = acc(changed model r on task v) / acc(model before on task v)

For task vectors (figure 3), model r is theta_0 + scale tau_r: off the diagonal, 1 is ideal. For pruned or perturbed
models (figures 1 and 10), r is the task whose least sensitive weights were changed, and 1 is ideal everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskarith_fast.analysis.edits import Edits, images_of, mean_by_task, right, single
from taskarith_fast.progress import SILENT, Progress


@dataclass(frozen=True, eq=False)
class AccuracyRatios:
    """Accuracies of R changed models on V tasks, and of the model before."""

    correct: np.ndarray
    """Which images a changed model has right, task after task, bool [R, sum N_v]."""
    correct_before: np.ndarray
    """Which the model before has, bool [sum N_v]."""
    images: np.ndarray
    """Images of each task N_v, int64 [V]: the denominators."""

    @property
    def accuracy(self) -> np.ndarray:
        """Shape [R, V], float64."""
        return mean_by_task(self.correct, self.images)

    @property
    def before(self) -> np.ndarray:
        """Shape [V]."""
        return mean_by_task(self.correct_before, self.images)

    @property
    def ratio(self) -> np.ndarray:
        """accuracy / before, shape [R, V]; NaN where the model before has no image right."""
        return self.accuracy / np.where(self.before > 0, self.before, np.nan)


def localization(edits: Edits, *, scale: float = 1.0, progress: Progress = SILENT) -> AccuracyRatios:
    """Evaluate each task vector alone on every task: (T + 1) V answers.

    Args:
        edits: T task vectors and V tasks.
        scale: Scale of each task vector.
        progress: Shows a bar.
    """
    points = [(0.0,) * edits.vectors, *(single(edits.vectors, t, scale) for t in range(edits.vectors))]
    found = []
    with progress.stage("localization", len(points) * len(edits.tasks)) as bar:
        for point in points:
            answers = []
            for task in edits.tasks:
                answers.append(right(edits, point, task))
                bar.advance()
            found.append(np.concatenate(answers))
    return AccuracyRatios(np.stack(found[1:]), found[0], images_of(edits))
