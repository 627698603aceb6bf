"""Sweeps over ranks and the loss on a plane, against models made and judged one by one."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.analyze_cart import cart_landscape, rank_sweep
from taskarith_fast.merging.cart import cart
from tests.loops import edited
from tests.loops.tiny import vit


@pytest.fixture(scope="module")
def world():
    base = edited.base()
    return base, [edited.moved(base, seed) for seed in (1, 2)], edited.splits(), edited.heads()


def _logits(world, state, name):
    _, _, splits, heads = world
    encoder = vit().eval()
    encoder.load_state_dict(dict(state))
    with torch.no_grad():
        return heads[name](encoder(edited.pixels(splits[name]))), splits[name].get(range(len(splits[name])))[1]


def _accuracy(world, state, name):
    logits, labels = _logits(world, state, name)
    return float((logits.argmax(-1) == labels).double().mean())


def _loss(world, state, name):
    logits, labels = _logits(world, state, name)
    return float(F.cross_entropy(logits.double(), labels))


def test_a_sweep_is_every_merge_judged_by_itself(world):
    base, models, splits, heads = world
    found = rank_sweep(vit(), base, models, splits, heads, rank_ratios=(1, 0.25, 0, 0.5), scale=1.4)
    assert found.rank_ratio.tolist() == [0, 0.25, 0.5, 1]
    for (d, order), (r, ratio) in itertools.product(enumerate(("largest", "smallest")), enumerate((0, 0.25, 0.5, 1))):
        state = (
            cart(base, models, rank_ratio=ratio, scale=1.4, order=order) if ratio else ta.merge(base, models, "average")
        )
        expected = [_accuracy(world, state, name) for name in splits]
        np.testing.assert_allclose(found.accuracy[0, d, r], expected, atol=1.01 / 40)  # a tie may fall either way
    whole = ta.merge(base, models, "task_arithmetic", scale=0.3)
    for d, r, state in ((0, 0, base), (1, 0, base), (0, 3, whole), (1, 3, whole)):
        np.testing.assert_allclose(
            found.accuracy[1, d, r], [_accuracy(world, state, name) for name in splits], atol=1.01 / 40
        )
    assert found.images.tolist() == [40, 48] and found.mean.shape == (2, 2, 4)
    assert len(np.unique(found.accuracy)) > 5


def test_routed_models_are_judged_on_their_own_task(world):
    base, models, splits, heads = world
    found = rank_sweep(
        vit(), base, models, splits, heads, rank_ratios=(0.25, 1), orders=["largest"], base_scale=0.7, routed=True
    )
    for (o, origin), (r, ratio) in itertools.product(enumerate(("average", "base")), enumerate((0.25, 1))):
        scale = 1.0 if origin == "average" else 0.7
        states = ta.merge_per_task(base, models, "cart_routing", rank_ratio=ratio, scale=scale, origin=origin)
        expected = [_accuracy(world, state, name) for state, name in zip(states, splits, strict=True)]
        np.testing.assert_allclose(found.accuracy[o, 0, r], expected, atol=1.01 / 40)


def test_the_landscape_is_the_loss_of_models_on_the_plane(world):
    base, models, splits, heads = world
    found = cart_landscape(
        vit(), base, models, splits, heads, rank_ratios=(0, 0.25, 1), scale=2.0, scales=(0, 0.5), points=3
    )
    assert found.surface.loss.shape == (3, 3, 2) and found.plane.coordinates.shape == (6, 2)
    ranks = [ta.merge(base, models, "average"), cart(base, models, rank_ratio=0.25, scale=2.0)]
    flat = [torch.cat([t.double().flatten() for t in s.values()]) for s in (base, *models, *ranks, ranks[0])]
    matrix = torch.stack(flat)
    mean, directions = matrix.mean(0), torch.from_numpy(found.plane.loadings.T) @ matrix
    sizes = [t.numel() for t in base.values()]

    def state(vector):
        parts = vector.float().split(sizes)
        return {n: part.view(t.shape) for part, (n, t) in zip(parts, base.items(), strict=True)}

    for (i, a), (j, b) in itertools.product(enumerate(found.surface.x), enumerate(found.surface.y)):
        expected = [_loss(world, state(mean + a * directions[0] + b * directions[1]), name) for name in splits]
        np.testing.assert_allclose(found.surface.loss[i, j], expected, rtol=2e-3)
    for r, model in enumerate([*ranks, ranks[0]]):
        np.testing.assert_allclose(found.rank_loss[r], [_loss(world, model, name) for name in splits], rtol=2e-3)
    half = ta.merge(base, models, "task_arithmetic", scale=0.5)
    np.testing.assert_allclose(found.scale_loss[1], [_loss(world, half, name) for name in splits], rtol=2e-3)
    vector = torch.cat([t.double().flatten() for t in half.values()])
    np.testing.assert_allclose(found.scale_coordinates[1], (directions @ (vector - mean)).numpy(), atol=1e-3)
    np.testing.assert_allclose(found.scale_coordinates[0], found.plane.coordinates[0], atol=1e-9)
    assert found.surface.x[0] < found.plane.coordinates[:, 0].min() < found.surface.x[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_ratios": [0.5, 1.5]}, r"rank_ratios must be in \[0, 1\], got \[0.5, 1.5\]"),
        ({"rank_ratios": []}, "rank_ratios must be a list of at least one finite number"),
        ({"origins": []}, "origins must be a list of some of average, base, got"),
        ({"orders": ["up"]}, "orders must be one of largest, smallest; got 'up'"),
        ({"orders": "largest"}, "orders must be a list of some of largest, smallest, got 'largest'"),
        ({"scale": float("inf")}, "scale must be finite"),
    ],
)
def test_mistakes_are_refused_before_any_decomposition(world, options, message, monkeypatch):
    monkeypatch.setattr("taskarith_fast.loops.analyze_cart.CartSpectrum", None)
    with pytest.raises(ArgumentError, match=message):
        rank_sweep(vit(), *world, **options)


def test_a_landscape_needs_a_grid(world):
    with pytest.raises(ArgumentError, match="points must be at least 2"):
        cart_landscape(vit(), *world, points=1)
