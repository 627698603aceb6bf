"""The plane of principal components against a singular value decomposition of the stacked weights."""

import numpy as np
import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.analysis.plane import combinations
from taskarith_fast.errors import ArgumentError


def _states(count=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    spread = [3.0, 2.0, 0.5, 0.2, 0.1]
    directions = [{"a": torch.randn(4, 3, generator=g), "b": torch.randn(7, generator=g)} for _ in spread]
    states = []
    for _ in range(count):
        steps = torch.randn(len(spread), generator=g) * torch.tensor(spread)
        states.append({n: sum(s * d[n] for s, d in zip(steps, directions, strict=True)) + 10 for n in ("a", "b")})
        states[-1]["count"] = torch.tensor([4])
    return states


def _flat(state):
    return torch.cat([state["a"].flatten(), state["b"]]).double().numpy()


def test_the_plane_is_that_of_the_svd():
    states = _states()
    plane = ta.analysis.principal_plane(states)
    matrix = np.stack([_flat(s) for s in states])
    centred = matrix - matrix.mean(0)
    _, s, vh = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ vh[:2].T
    np.testing.assert_allclose(np.abs(plane.coordinates), np.abs(expected), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plane.explained, (s**2)[:2] / (s**2).sum(), rtol=1e-6)
    outside = np.linalg.norm(centred - expected @ vh[:2], axis=1)
    np.testing.assert_allclose(plane.distance, outside, rtol=1e-3, atol=1e-4)
    assert all(column[np.abs(column).argmax()] > 0 for column in plane.coordinates.T)


def test_points_of_the_plane_are_combinations_of_the_models():
    states = _states()
    plane = ta.analysis.principal_plane(states)
    matrix = np.stack([_flat(s) for s in states])
    mean, (one, two) = matrix.mean(0), plane.loadings.T @ matrix
    assert np.linalg.norm(one) == pytest.approx(1) and np.linalg.norm(two) == pytest.approx(1)
    assert one @ two == pytest.approx(0, abs=1e-9)
    points = np.array([[0.0, 0.0], [1.5, -2.0]])
    weights = plane.weights(points)
    np.testing.assert_allclose(weights.sum(1), 1)
    for state, (a, b) in zip(combinations(states, weights), points, strict=True):
        np.testing.assert_allclose(_flat(state), mean + a * one + b * two, atol=1e-5)
        assert state["count"].tolist() == [4] and list(state) == list(states[0])
    np.testing.assert_allclose(plane.project(weights), points, atol=1e-9)
    np.testing.assert_allclose(plane.project(np.eye(5)), plane.coordinates)


def test_models_on_a_line_span_no_plane():
    states = [{"a": torch.full((3,), float(i))} for i in range(4)]
    with pytest.raises(ArgumentError, match="states must not be on one line"):
        ta.analysis.principal_plane(states)
    with pytest.raises(ArgumentError, match="states must not be on one line"):
        ta.analysis.principal_plane([states[0]] * 3)
    with pytest.raises(ArgumentError, match="at least 3 models to span a plane, got 2"):
        ta.analysis.principal_plane(states[:2])
