"""Loss on a plane of models, and along the ways through it (CART 2024, figures 4, 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F

from taskarith_fast.analysis.edits import Edits, Point
from taskarith_fast.analysis.plane import Plane
from taskarith_fast.progress import SILENT, Progress


@dataclass(frozen=True, eq=False)
class Landscape:
    """The loss of V tasks on a grid of the plane."""

    x: np.ndarray
    """Coordinates along the first direction, float64 [X]."""
    y: np.ndarray
    """Along the second, [Y]."""
    loss: np.ndarray
    """Mean cross entropy of each task in nats, [X, Y, V]; the papers show the sum over the tasks."""


def losses(edits: Edits, point: Point, task: str) -> np.ndarray:
    """Cross entropy of each image of one task at a point, in nats, float64 [N]."""
    return F.cross_entropy(edits.logits(point, task).double(), edits.labels(task), reduction="none").cpu().numpy()


def loss(edits: Edits, point: Point, task: str) -> float:
    """Mean cross entropy of one task at a point, in nats."""
    return float(losses(edits, point, task).mean())


def landscape(
    edits: Edits, plane: Plane, *, points: int = 20, margin: float = 0.25, radius: float, progress: Progress = SILENT
) -> Landscape:
    """Evaluate the loss on a grid around the projections of the plane's models: points^2 V answers.

    Args:
        edits: Two task vectors, from the mean of the models to `radius` along each direction.
        plane: Where the models are.
        points: Points of the grid along each direction.
        margin: Width left around the models, as a share of their extent.
        radius: In units of the weights; the scales of `edits` are coordinates over it.
        progress: Shows a bar.
    """
    low, high = plane.coordinates.min(0), plane.coordinates.max(0)
    pad = margin * (high - low)
    x, y = (np.linspace(low[k] - pad[k], high[k] + pad[k], points) for k in (0, 1))
    found = np.zeros((points, points, len(edits.tasks)))
    with progress.stage("landscape", found.size) as bar:
        for i, a in enumerate(x):
            for j, b in enumerate(y):
                for v, task in enumerate(edits.tasks):
                    found[i, j, v] = loss(edits, (a / radius, b / radius), task)
                    bar.advance()
    return Landscape(x, y, found)
