"""The disentanglement error against the formula, point by point."""

import itertools

import numpy as np
import pytest
import torch

from taskarith_fast.analysis.disentanglement import disentanglement_error, symmetric_kl
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.edits import EncoderEdits
from tests.loops import edited
from tests.loops.tiny import vit

ONE, TWO = (-1.5, 0.5, 2.0), (-1.0, 0.0, 0.7, 1.5)


@pytest.fixture(scope="module")
def world():
    base = edited.base()
    return base, [edited.moved(base, seed) for seed in (1, 2, 3)], edited.splits(), edited.heads()


def _edits(base, states, splits, heads):
    return EncoderEdits(vit(), base, states, splits, heads)


def _kl(p, q):
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return 0.5 * ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1))


@pytest.mark.parametrize("distance", ["prediction", "representation"])
def test_the_error_is_the_formula_on_any_grid(world, distance):
    base, states, splits, heads = world
    states = states[:2]
    found = disentanglement_error(
        _edits(*world[:1], states, splits, heads), scales=ONE, scales_2=TWO, distance=distance
    )
    assert found.by_task.shape == (2, 3, 4) and found.error.shape == (3, 4)
    for (i, l1), (j, l2) in itertools.product(enumerate(ONE), enumerate(TWO)):
        for t, (name, alone) in enumerate(zip(edited.TASKS, [(l1, 0), (0, l2)], strict=True)):
            one, both = (edited.features(base, states, point, splits[name]) for point in (alone, (l1, l2)))
            if distance == "prediction":
                expected = (edited.classes(heads[name], one) != edited.classes(heads[name], both)).double().mean()
                assert found.by_task[t, i, j] == pytest.approx(float(expected), abs=1e-12)
            else:
                assert found.by_task[t, i, j] == pytest.approx(float(_kl(one, both).mean()), rel=2e-3, abs=1e-6)
    assert (found.error > 0).any() and len(np.unique(found.error)) > 3
    np.testing.assert_array_equal(found.by_task[0, :, 1], 0)  # l2 = 0 leaves the first task's model alone


def test_axes_and_terms_follow_the_pair(world):
    base, states, splits, heads = world
    edits = _edits(base, states, splits, heads)
    forth = disentanglement_error(edits, scales=ONE, scales_2=TWO, pair=(0, 1))
    back = disentanglement_error(edits, scales=TWO, scales_2=ONE, pair=(1, 0))
    np.testing.assert_array_equal(forth.by_task, back.by_task[::-1].transpose(0, 2, 1))


def test_each_mean_is_over_its_own_images(world):
    """The first task's images twice over change no mean."""
    base, states, splits, heads = world
    from taskarith_fast.data import SubsetSplit

    doubled = {"a": SubsetSplit(splits["a"], [*range(40)] * 2), "b": splits["b"]}
    once, twice = (disentanglement_error(_edits(base, states, s, heads), scales=ONE).by_task for s in (splits, doubled))
    np.testing.assert_allclose(once, twice, atol=1e-12)


class Counting:
    """Edits of two models that are linear in the scales, and how often each was asked."""

    tasks, vectors = ("a", "b"), 2

    def __init__(self):
        self.asked = []

    def features(self, point, task):
        self.asked.append((tuple(point), task))
        return torch.outer(torch.ones(4), torch.tensor([*point, 1.0]))

    def logits(self, point, task):
        return self.features(point, task)


def test_single_models_are_asked_once_a_scale():
    edits = Counting()
    disentanglement_error(edits, scales=ONE, scales_2=TWO)
    assert len(edits.asked) == len(ONE) + len(TWO) + 2 * len(ONE) * len(TWO)
    merged = edits.asked[len(ONE) + len(TWO) :]
    # The two questions at a point follow each other, so that its weights are written once.
    assert all(a[0] == b[0] for a, b in zip(merged[::2], merged[1::2], strict=True))


def test_symmetric_kl_is_symmetric_zero_on_equals_and_blind_to_shifts():
    p, q = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert symmetric_kl(p, q).shape == (5,)
    torch.testing.assert_close(symmetric_kl(p, q), symmetric_kl(q, p))
    torch.testing.assert_close(symmetric_kl(p, q), _kl(p, q))
    assert not symmetric_kl(p, p).any()
    torch.testing.assert_close(symmetric_kl(p + 3, q), symmetric_kl(p, q), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": []}, "scales must be a list of at least one finite number"),
        ({"scales": [0.0, float("nan")]}, "scales must be a list"),
        ({"scales": [1.0], "scales_2": [[1.0]]}, "scales_2 must be a list"),
        ({"scales": [1.0], "pair": (0, 2)}, r"pair must be two different places below 2, got \(0, 2\)"),
        ({"scales": [1.0], "pair": (1, 1)}, "pair must be two different places"),
        ({"scales": [1.0], "distance": "kl"}, "distance must be one of prediction, representation; got 'kl'"),
    ],
)
def test_mistakes_are_refused_before_any_answer(options, message):
    edits = Counting()
    with pytest.raises(ArgumentError, match=message):
        disentanglement_error(edits, **options)
    assert not edits.asked
