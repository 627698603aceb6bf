"""Single-task accuracy of fine-tuning recipes, task by task (TaLoS 2025, figure 9; Jin 2024, figures 3 and 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from taskarith_fast.analysis.edits import Edits, images_of
from taskarith_fast.analysis.lambda_curve import single_task
from taskarith_fast.errors import ArgumentError
from taskarith_fast.progress import SILENT, Progress


@dataclass(frozen=True, eq=False)
class Radar:
    """Accuracies of M recipes on V tasks, each task by its own model."""

    recipes: np.ndarray
    """Names, [M]."""
    accuracy: np.ndarray
    """Shape [M, V], float64."""
    images: np.ndarray
    """Images of each task, int64 [V]."""


def radar(recipes: Mapping[str, Edits], *, progress: Progress = SILENT) -> Radar:
    """Evaluate every recipe's model of each task on it: M V answers.

    Args:
        recipes: Recipe -> its edits, the t-th task vector of task t; all with the same tasks.
        progress: Shows a bar.

    Raises:
        ArgumentError: If there is no recipe, or tasks differ.
    """
    if not recipes:
        raise ArgumentError("recipes must hold at least one, got none")
    first, *others = recipes.values()
    for edits in others:
        if tuple(edits.tasks) != tuple(first.tasks):
            raise ArgumentError(f"recipes must have the same tasks, got {list(first.tasks)} and {list(edits.tasks)}")
    with progress.stage("radar", len(recipes) * len(first.tasks)) as bar:
        found = [single_task(edits, bar) for edits in recipes.values()]
    return Radar(np.array(list(recipes)), np.stack(found), images_of(first))
