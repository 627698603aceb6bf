"""Localization, lambda curves, subsets and single tasks: accuracies against fresh models, one by one."""

import itertools

import numpy as np
import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.analysis.edits import stderr
from taskarith_fast.errors import ArgumentError
from tests.loops import edited
from tests.loops.tiny import vit


@pytest.fixture(scope="module")
def world():
    base = edited.base()
    return base, [edited.moved(base, seed) for seed in (1, 2)], edited.splits(), edited.heads()


@pytest.fixture
def edits(world):
    return ta.EncoderEdits(vit(), *world)


def _accuracy(world, point, name):
    base, states, splits, heads = world
    predicted = edited.classes(heads[name], edited.features(base, states, point, splits[name]))
    return float((predicted == splits[name].get(range(len(splits[name])))[1]).double().mean())


def test_localization_is_accuracy_over_the_base_models(world, edits):
    found = ta.analysis.localization(edits, scale=0.5)
    for (t, point), (v, name) in itertools.product(enumerate([(0.5, 0), (0, 0.5)]), enumerate(edited.TASKS)):
        before, after = _accuracy(world, (0, 0), name), _accuracy(world, point, name)
        assert found.accuracy[t, v] == pytest.approx(after) and found.before[v] == pytest.approx(before)
        assert found.ratio[t, v] == pytest.approx(after / before)
    assert found.images.tolist() == [40, 48]
    assert len(np.unique(found.accuracy)) > 1


def test_a_base_model_without_a_right_image_gives_no_ratio():
    after, before = np.array([[1, 1, 0, 0, 1, 0, 0, 1]], dtype=bool), np.array([0, 0, 0, 0, 0, 1, 0, 0], dtype=bool)
    found = ta.analysis.AccuracyRatios(after, before, np.array([4, 4]))
    assert np.isnan(found.ratio[0, 0]) and found.ratio[0, 1] == 2


def test_a_lambda_curve_is_the_accuracy_of_the_sum_at_each_scale(world, edits):
    found = ta.analysis.lambda_curve(edits, scales=[0, 0.3, 1])
    own = [_accuracy(world, point, name) for point, name in zip([(1, 0), (0, 1)], edited.TASKS, strict=True)]
    assert found.single.tolist() == pytest.approx(own)
    for i, scale in enumerate((0, 0.3, 1)):
        expected = [_accuracy(world, (scale, scale), name) for name in edited.TASKS]
        assert found.accuracy[i].tolist() == pytest.approx(expected)
        assert found.normalized[i] == pytest.approx(np.mean([e / o for e, o in zip(expected, own, strict=True)]))


def test_subsets_are_judged_on_their_own_tasks(world, edits):
    found = ta.analysis.task_count(edits, scales=[0.4])
    assert found.members.tolist() == [[True, False], [False, True], [True, True]]
    for members, row in zip(found.members, found.accuracy, strict=True):
        point = [0.4 * m for m in members]
        for member, value, name in zip(members, row, edited.TASKS, strict=True):
            assert np.isnan(value) if not member else value == pytest.approx(_accuracy(world, point, name))
    assert found.mean[2] == pytest.approx(found.accuracy[2].mean()) and found.mean[0] == found.accuracy[0, 0]
    assert found.normalized[0] == pytest.approx(found.accuracy[0, 0] / found.single[0])
    only = ta.analysis.task_count(edits, scales=[0.4], sizes=[2])
    np.testing.assert_array_equal(only.accuracy, found.accuracy[2:])


def test_the_scale_of_a_subset_is_chosen_on_validation_images(world, edits):
    base, states, splits, heads = world
    swapped = {"a": splits["b"], "b": splits["a"]}
    validation = ta.EncoderEdits(vit(), base, states, swapped, heads)
    scales = (0.0, 0.1, 0.5, 1.0)
    found = ta.analysis.task_count(edits, scales=scales[::-1], validation=validation)
    other = (base, states, swapped, heads)
    own = [_accuracy(other, point, name) for point, name in zip([(1, 0), (0, 1)], edited.TASKS, strict=True)]
    for members, scale in zip(found.members, found.scale, strict=True):
        scores = [
            np.mean([
                _accuracy(other, [s * m for m in members], name) / own[v]
                for v, (name, m) in enumerate(zip(edited.TASKS, members, strict=True)) if m
            ])
            for s in scales
        ]  # fmt: skip
        assert scale == scales[int(np.argmax(np.round(scores, 12)))]
    assert len(set(found.scale)) > 1


def test_radar_is_each_model_on_its_own_task(world, edits):
    base, states, splits, heads = world
    found = ta.analysis.radar({"one": edits, "two": ta.EncoderEdits(vit(), base, states[::-1], splits, heads)})
    assert found.recipes.tolist() == ["one", "two"]
    expected = [[_accuracy(world, p, n) for p, n in zip(points, edited.TASKS, strict=True)]
                for points in ([(1, 0), (0, 1)], [(0, 1), (1, 0)])]  # fmt: skip
    np.testing.assert_allclose(found.accuracy, expected)
    other = ta.EncoderEdits(vit(), base, states[:1], {"b": splits["b"]}, heads)
    with pytest.raises(ArgumentError, match="recipes must have the same tasks"):
        ta.analysis.radar({"one": edits, "two": other})


@pytest.mark.parametrize(
    ("method", "parameters", "scales"),
    [("cart", {"rank_ratio": 0.5}, (0.5, 1.5)), ("ties", {"density": 0.4}, (0.7,)), ("average", {}, (1.0,))],
)
def test_merged_edits_are_the_merge_of_the_models_that_take_part(world, method, parameters, scales):
    base, states, splits, heads = world
    edits = ta.MergedEdits(vit(3), base, states, splits, heads, method=method, parameters=parameters)
    for scale, members in itertools.product(scales, [(0,), (0, 1), (1,), ()]):
        scaled = {} if method == "average" else {"scale": scale}
        models = [states[t] for t in members]
        state = ta.merge(base, models, method, **parameters, **scaled) if members else base
        encoder = vit().eval()
        encoder.load_state_dict(state)
        with torch.no_grad():
            expected = encoder(edited.pixels(splits["b"]))
        point = [scale if t in members else 0 for t in range(2)]
        torch.testing.assert_close(edits.features(point, "b"), expected, rtol=1e-4, atol=1e-5)


def test_merged_edits_refuse_what_is_no_merge(world):
    base, states, splits, heads = world
    with pytest.raises(ArgumentError, match="parameters must not have the scale"):
        ta.MergedEdits(vit(), base, states, splits, heads, method="ties", parameters={"scale": 1})
    with pytest.raises(ArgumentError, match="method must be one of"):
        ta.MergedEdits(vit(), base, states, splits, heads, method="tiez")
    with pytest.raises(ArgumentError, match="point must have one scale for all models that take part"):
        ta.MergedEdits(vit(), base, states, splits, heads, method="ties").features((1, 2), "a")
    with pytest.raises(ArgumentError, match="'average' has no scale"):
        ta.MergedEdits(vit(), base, states, splits, heads, method="average").features((2, 2), "a")


def test_mistakes_are_named(world, edits):
    base, states, splits, heads = world
    one = ta.EncoderEdits(vit(), base, states[:1], splits, heads)
    for analysis in (ta.analysis.task_count, lambda e: ta.analysis.lambda_curve(e, scales=[1])):
        with pytest.raises(ArgumentError, match="one task vector a task, got 1 for 2 tasks"):
            analysis(one)
    with pytest.raises(ArgumentError, match="validation must be given to choose among 2 scales"):
        ta.analysis.task_count(edits, scales=[0.1, 0.2])
    with pytest.raises(ArgumentError, match=r"sizes must be numbers from 1 to 2, got \[3\]"):
        ta.analysis.task_count(edits, sizes=[3])
    with pytest.raises(ArgumentError, match="scales must be a list of at least one finite number, got 'x'"):
        ta.analysis.lambda_curve(edits, scales="x")


def test_standard_errors_are_binomial():
    found = stderr(np.array([[0.5, 0.0, np.nan]]), np.array([100, 10, 10]))
    np.testing.assert_allclose(found, [[0.05, 0, np.nan]])
