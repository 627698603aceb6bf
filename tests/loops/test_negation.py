"""Negation: the lowest target accuracy among the scales that keep the control task."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.evaluate import Evaluation
from taskarith_fast.loops.negation import search_negation

BASE = {"w": torch.tensor([1.0, 1.0])}
TAU = ta.TaskVector({"w": torch.tensor([1.0, 0.0])})


def _judge(target, control):
    """Accuracies looked up by how far the weight was moved, of 100 images."""

    def evaluate(state):
        moved = round(1.0 - float(state["w"][0]), 3)
        hits = {"t": target[moved], "c": control[moved]}
        return {name: Evaluation(torch.arange(100) < count) for name, count in hits.items()}

    return evaluate


def _search(target, control, tau=TAU, **options):
    judge = _judge(target, control)
    return search_negation(BASE, tau, judge, target="t", control="c", scales=list(target), **options)


def test_the_control_rule_limits_the_scale_and_equality_passes():
    found = _search({0.0: 90, 0.5: 40, 1.0: 10}, {0.0: 80, 0.5: 76, 1.0: 75})
    assert (found.best.scale, [p.allowed for p in found.points]) == (0.5, [True, True, False])
    assert _search({0.0: 90, 1.0: 10}, {0.0: 80, 1.0: 0}, keep=0.0).best.scale == 1.0


def test_the_smallest_scale_wins_and_zero_is_always_tried():
    assert _search({0.0: 90, 0.5: 40, 1.0: 40}, {0.0: 80, 0.5: 80, 1.0: 80}).best.scale == 0.5
    judge = _judge({0.0: 50, 1.0: 60}, {0.0: 80, 1.0: 90})
    assert search_negation(BASE, TAU, judge, target="t", control="c", scales=[1.0]).best.scale == 0.0


def test_a_sparse_task_vector_gives_the_same_points():
    sparse = ta.SparseTaskVector.between(BASE, TAU.apply(BASE))
    levels = {0.0: 90, 0.5: 40, 1.0: 10}, {0.0: 80, 0.5: 77, 1.0: 79}
    assert _search(*levels, tau=sparse).best.scale == _search(*levels).best.scale == 1.0


def test_wrong_arguments_are_named():
    judge = _judge({0.0: 1}, {0.0: 1})
    with pytest.raises(ArgumentError, match="control must be another task"):
        search_negation(BASE, TAU, judge, target="t", control="t")
    with pytest.raises(ArgumentError, match="keep must be in"):
        search_negation(BASE, TAU, judge, target="t", control="c", keep=95)
    with pytest.raises(ArgumentError, match="scales must not be negative"):
        search_negation(BASE, TAU, judge, target="t", control="c", scales=[-1.0])
