r"""Accuracy against the rank kept of each task's distance to an origin (CART 2024, figures 1, 2, 3 and 5).

Around the average of the models the curve of merged models is a bell; around the pre-trained model it rises. In the
order "smallest" the weakest singular triplets are kept. Routed models, one a task, are judged on their own task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from taskarith_fast.analysis.edits import check_grid, mean_by_task
from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.progress import SILENT, Progress

ORIGINS = ("average", "base")
ORDERS = ("largest", "smallest")

Judge = Callable[[str, str, float], Sequence[np.ndarray]]
"""(origin, order, rank ratio) -> which images are right, bool [N_v], of V tasks."""


@dataclass(frozen=True, eq=False)
class RankCurves:
    """Accuracies by origin, order and rank."""

    origins: np.ndarray
    """Names, [O]."""
    orders: np.ndarray
    """Names, [D]."""
    rank_ratio: np.ndarray
    """Rank over full rank, float64 [R], ascending; 0 keeps nothing, which is the origin."""
    correct: np.ndarray
    """Which images are right, task after task, bool [O, D, R, sum N_v]."""
    images: np.ndarray
    """Images of each task, int64 [V]."""

    @property
    def accuracy(self) -> np.ndarray:
        """Shape [O, D, R, V]."""
        return mean_by_task(self.correct, self.images)

    @property
    def mean(self) -> np.ndarray:
        """Mean over the tasks, [O, D, R]."""
        return self.accuracy.mean(-1)


def rank_curves(
    judge: Judge,
    images: Sequence[int],
    *,
    rank_ratios: Sequence[float],
    origins: Sequence[str] = ORIGINS,
    orders: Sequence[str] = ORDERS,
    progress: Progress = SILENT,
) -> RankCurves:
    """Judge every rank in every order; at rank 0 and at full rank the orders are one, and judged once.

    Args:
        judge: Evaluates one model, or one a task.
        images: N_v, the images of each task.
        rank_ratios: Ranks over full rank, in [0, 1].
        origins: Among "average" and "base".
        orders: Among "largest" and "smallest".
        progress: Shows a bar.

    Raises:
        ArgumentError: If an argument is out of its domain.
    """
    grid = check_rank_arguments(rank_ratios, origins, orders)
    found = np.zeros((len(origins), len(orders), len(grid), sum(images)), dtype=bool)
    with progress.stage("ranks", found[..., 0].size) as bar:
        for o, origin in enumerate(origins):
            for d, order in enumerate(orders):
                for r, ratio in enumerate(grid.tolist()):
                    again = d > 0 and ratio in (0, 1)
                    found[o, d, r] = found[o, 0, r] if again else np.concatenate(judge(origin, order, ratio))
                    bar.advance()
    return RankCurves(np.array(origins), np.array(orders), grid, found, np.array(images, dtype=np.int64))


def check_rank_arguments(rank_ratios: Sequence[float], origins: Sequence[str], orders: Sequence[str]) -> np.ndarray:
    """The ascending ranks, if all is in its domain; ArgumentError otherwise."""
    grid = np.unique(check_grid("rank_ratios", rank_ratios))
    if grid[0] < 0 or grid[-1] > 1:
        raise ArgumentError(f"rank_ratios must be in [0, 1], got {list(rank_ratios)}")
    for name, values, known in (("origins", origins, ORIGINS), ("orders", orders, ORDERS)):
        if isinstance(values, str) or not values or len(set(values)) < len(values):
            raise ArgumentError(f"{name} must be a list of some of {', '.join(known)}, got {values!r}")
        for value in values:
            check_choice(name, value, known)
    return grid
