r"""Weight disentanglement: do two task vectors act on their own task's images only? (Ortiz-Jimenez 2023, equation 5.)

    xi(l1, l2) = sum_{t=1,2} mean_{x in D_t} d( f(x; theta_0 + l_t tau_t), f(x; theta_0 + l1 tau_1 + l2 tau_2) )

d is 1 where the predicted classes differ (Ortiz-Jimenez 2023; TaLoS 2025, figure 2), or the symmetric Kullback-Leibler
divergence of the softmax of the features (Jin 2024, figure 4). Each mean is over its own task's images, all of them.
The answers of the single models depend on one scale each: 2 n of them and 2 n^2 of merged models fill an n x n grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskarith_fast.analysis.edits import Edits, check_grid, predictions
from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.progress import SILENT, Progress

DISTANCES = ("prediction", "representation")


@dataclass(frozen=True, eq=False)
class Disentanglement:
    """The error on a grid of two scales."""

    scales_1: np.ndarray
    """Scales l1 of the first task vector, float64 [n1]: the first axis of the grids."""
    scales_2: np.ndarray
    """Scales l2 of the second task vector, float64 [n2]: the second axis."""
    distance_1: np.ndarray
    """d for each image of the first task, [n1, n2, N_1]: bool for predictions, float32 for representations."""
    distance_2: np.ndarray
    """The same for the second task, [n1, n2, N_2]."""

    @property
    def by_task(self) -> np.ndarray:
        """The two terms of the sum, float64 [2, n1, n2]."""
        return np.stack([d.mean(-1, dtype=np.float64) for d in (self.distance_1, self.distance_2)])

    @property
    def error(self) -> np.ndarray:
        """xi, float64 [n1, n2]; in [0, 2] for predictions."""
        return self.by_task.sum(0)


def disentanglement_error(
    edits: Edits,
    *,
    scales: Sequence[float],
    scales_2: Sequence[float] | None = None,
    pair: tuple[int, ...] = (0, 1),
    distance: str = "prediction",
    progress: Progress = SILENT,
) -> Disentanglement:
    """Measure how much one task's edit disturbs the other's answers, for all pairs of scales.

    Args:
        edits: At least two task vectors; vector t belongs to task t.
        scales: Scales l1, n1 numbers.
        scales_2: Scales l2, n2 numbers; as `scales` if None.
        pair: Places of the two task vectors; all others have scale 0.
        distance: "prediction" or "representation".
        progress: Shows a bar, one step an answer.

    Raises:
        ArgumentError: If a grid is empty or not finite, or the pair is not two of the tasks.
    """
    check_choice("distance", distance, DISTANCES)
    grids = [check_grid("scales", scales), check_grid("scales_2", scales if scales_2 is None else scales_2)]
    count = min(edits.vectors, len(edits.tasks))
    if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= t < count for t in pair):
        raise ArgumentError(f"pair must be two different places below {count}, got {tuple(pair)}")
    tasks = [edits.tasks[t] for t in pair]

    def answer(l1: float, l2: float, task: str) -> Tensor:
        point = [0.0] * edits.vectors
        point[pair[0]], point[pair[1]] = l1, l2
        bar.advance()
        if distance == "prediction":
            return predictions(edits, point, task)
        return edits.features(point, task)

    apart = torch.ne if distance == "prediction" else _representation_distance
    n1, n2 = (len(grid) for grid in grids)
    found: list[list[Tensor]] = [[], []]
    total = 2 * n1 * n2 + n1 + n2
    with progress.stage("disentanglement", total) as bar:
        alone = [[answer(l1, 0.0, tasks[0]) for l1 in grids[0]], [answer(0.0, l2, tasks[1]) for l2 in grids[1]]]
        for i, l1 in enumerate(grids[0]):
            for j, l2 in enumerate(grids[1]):
                found[0].append(apart(alone[0][i], answer(l1, l2, tasks[0])))
                found[1].append(apart(alone[1][j], answer(l1, l2, tasks[1])))
    first, second = (torch.stack(images).unflatten(0, (n1, n2)).cpu().numpy() for images in found)
    return Disentanglement(grids[0], grids[1], first, second)


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """(KL(p||q) + KL(q||p)) / 2 of the softmaxes of features [N, D], row by row, float64 [N]."""
    log_p, log_q = (torch.log_softmax(x.double(), dim=-1) for x in (p, q))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2


def _representation_distance(p: Tensor, q: Tensor) -> Tensor:
    return symmetric_kl(p, q).float()
