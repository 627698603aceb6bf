r"""The plane of the first two principal components of a set of models, in the space of all their weights.

    G[i, j] = <theta_i - mean, theta_j - mean> = V diag(s) V^T        u_k = sum_i V[i, k] theta_i / sqrt(s_k)

n models have at most n - 1 components, which the n x n Gram matrix gives: no component is ever decomposed in the space
of the weights (CART 2024, figures 4 and 7). A point of the plane is an affine combination of the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskarith_fast.analysis.cosine import gram_of_deltas
from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops import weighted_sum
from taskarith_fast.progress import SILENT, Progress


@dataclass(frozen=True, eq=False)
class Plane:
    """Two orthonormal directions through the mean of n models."""

    coordinates: np.ndarray
    """Of the models' projections, in units of the weights, float64 [n, 2]."""
    explained: np.ndarray
    """Share of the models' variance along each direction, [2]."""
    distance: np.ndarray
    """Of each model from the plane, [n]."""
    loadings: np.ndarray
    """The directions as combinations of the models, [n, 2]; each column sums to 0."""

    def weights(self, points: np.ndarray) -> np.ndarray:
        """Points of the plane, [..., 2], as affine combinations of the models, [..., n]; they sum to 1."""
        return 1 / len(self.loadings) + np.asarray(points) @ self.loadings.T

    def project(self, weights: np.ndarray) -> np.ndarray:
        """Coordinates, [..., 2], of the projections of affine combinations of the models, [..., n]."""
        return np.asarray(weights) @ self.coordinates


def principal_plane(states: Sequence[Mapping[str, Tensor]], *, progress: Progress = SILENT) -> Plane:
    """Find the plane that the models are closest to, in float64; one read of every model.

    Args:
        states: n models, at least 3 that are not on one line; floating tensors count, all others are left out.
        progress: Shows a bar.

    Raises:
        ArgumentError: If there are fewer, or all are on one line.
        CheckpointError: If a model lacks a tensor of the first, or has it in another shape.
    """
    count = len(states)
    if count < 3:
        raise ArgumentError(f"states must be at least 3 models to span a plane, got {count}")
    gram = np.zeros((count, count))
    gram[1:, 1:] = gram_of_deltas(states[0], states[1:], progress=progress).numpy()
    centering = np.eye(count) - 1 / count
    gram = centering @ gram @ centering
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values[:-3:-1], vectors[:, :-3:-1]  # the two largest
    if values[1] <= 1e-12 * max(values[0], 0) or values[0] <= 0:
        raise ArgumentError("states must not be on one line: they span no plane")
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), [0, 1]])  # the sign is free
    coordinates = vectors * np.sqrt(values)
    outside = np.maximum(np.diag(gram) - (coordinates**2).sum(1), 0)
    return Plane(coordinates, values / np.trace(gram), np.sqrt(outside), vectors / np.sqrt(values))


def combinations(
    states: Sequence[Mapping[str, Tensor]], weights: np.ndarray, *, progress: Progress = SILENT
) -> list[dict[str, Tensor]]:
    """Affine combinations of models as states; one read of every model for all of them.

    Args:
        states: n models.
        weights: Shape [m, n]; rows sum to 1.
        progress: Shows a bar.

    Returns:
        m states in the key order of the first model, each tensor summed in float64 and rounded once; tensors that are
        not floating point are the first model's.
    """
    out: list[dict[str, Tensor]] = [{} for _ in weights]
    table = torch.from_numpy(np.asarray(weights, dtype=np.float64))
    for name in progress.track(list(states[0]), "combinations"):
        first = states[0][name].detach()
        models = [[state[name].detach()] for state in states[1:]] if first.is_floating_point() else []
        for state, row in zip(out, table, strict=True):
            state[name] = weighted_sum([first], models, row[1:])[0] if models else first.clone()
    return out
