import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.evaluate import Evaluation
from taskarith_fast.loops.merge import SCALES, line_search, scale_grid

BASE = {"w": torch.zeros(1)}
FINETUNED = [{"w": torch.ones(1)}]
REFERENCE = {"a": Evaluation(torch.ones(20, dtype=torch.bool)), "b": Evaluation(torch.arange(20) < 10)}


def _correct(hits):
    return Evaluation(torch.arange(20) < hits)


def _peak(state):
    """Task a is best at scale 0.5, task b gains with the scale."""
    scale = float(state["w"])
    return {"a": _correct(20 - round(20 * abs(scale - 0.5))), "b": _correct(round(4 + 2 * scale))}


def test_the_grid_is_the_papers():
    assert pytest.approx(torch.linspace(0, 1, 21, dtype=torch.float64).tolist()) == SCALES
    assert scale_grid(0.1) == pytest.approx([scale * 10 for scale in SCALES])


def test_the_score_is_the_normalised_validation_accuracy():
    found = line_search(BASE, FINETUNED, _peak, reference=REFERENCE)
    assert len(found.points) == 21 and found.parameters == {"scale": 0.5}
    assert found.best.score == pytest.approx((20 / 20 / 1 + 5 / 20 / 0.5) / 2)
    assert found.best.mean == pytest.approx((1 + 5 / 20) / 2)


def test_without_a_reference_the_score_is_the_mean():
    found = line_search(BASE, FINETUNED, _peak, reference=None)
    assert found.best.score == found.best.mean


def test_the_reference_can_change_the_choice():
    def trade(state):
        scale = float(state["w"])
        return {"a": _correct(round(18 - 6 * scale)), "b": _correct(round(2 + 4 * scale))}

    assert line_search(BASE, FINETUNED, trade, reference=None).parameters == {"scale": 0.0}
    assert line_search(BASE, FINETUNED, trade, reference=REFERENCE).parameters["scale"] > 0.5


def test_the_smallest_of_equal_scales_wins_in_whatever_order_they_are_given():
    def flat(state):
        return {"a": _correct(10 if float(state["w"]) >= 0.25 else 0)}

    found = line_search(BASE, FINETUNED, flat, grid={"scale": [1.0, 0.5, 0.0, 0.25]}, reference=None)
    assert found.parameters == {"scale": 0.25}
    assert [point.parameters["scale"] for point in found.points] == [0.0, 0.25, 0.5, 1.0]


def _states(points):
    """Any parameters may make a state: here two numbers."""
    return ({"w": torch.tensor([point["rank"], point["scale"]])} for point in points)


def _bowl(state):
    rank, scale = state["w"].tolist()
    return {"a": _correct(round(20 - 4 * abs(rank - 3) - 4 * abs(scale - 1)))}


def test_a_whole_grid_is_visited_with_the_last_parameter_fastest():
    grid = {"rank": [1.0, 3.0], "scale": [0.0, 1.0]}
    found = line_search(BASE, [], _bowl, grid=grid, make_states=_states, reference=None)
    pairs = [tuple(point.parameters.values()) for point in found.points]
    assert pairs == [(1.0, 0.0), (1.0, 1.0), (3.0, 0.0), (3.0, 1.0)]
    assert found.parameters == {"rank": 3.0, "scale": 1.0}
    assert found.curve("rank") == ([1.0, 3.0], [12 / 20, 20 / 20])


def test_one_parameter_at_a_time_judges_every_point_once():
    grid = {"scale": [0.0, 1.0, 2.0], "rank": [1.0, 2.0, 3.0, 4.0]}
    found = line_search(
        BASE,
        [],
        _bowl,
        grid=grid,
        make_states=_states,
        reference=None,
        one_at_a_time=True,
        fixed={"kind": "x"},
    )
    pairs = [(point.parameters["scale"], point.parameters["rank"]) for point in found.points]
    assert pairs == [(0.0, 3.0), (1.0, 3.0), (2.0, 3.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0)]
    assert found.parameters == {"kind": "x", "scale": 1.0, "rank": 3.0}
    assert found.curve("rank")[0] == [1.0, 2.0, 3.0, 4.0]


def test_one_at_a_time_keeps_the_smallest_of_equals():
    found = line_search(
        BASE, [], lambda state: {"a": _correct(5)}, grid={"scale": [0.0, 1.0, 2.0], "rank": [1.0, 2.0]},
        make_states=_states, reference=None, one_at_a_time=True,
    )  # fmt: skip
    assert found.parameters == {"scale": 0.0, "rank": 1.0}


def test_bad_grids_and_parameters_are_named():
    with pytest.raises(ArgumentError, match=r"grid\['scale'\] must hold at least one value, got none"):
        line_search(BASE, FINETUNED, _peak, grid={"scale": []}, reference=None)
    with pytest.raises(ArgumentError, match="grid must have at least one parameter, got none"):
        line_search(BASE, FINETUNED, _peak, grid={}, reference=None)
    with pytest.raises(ArgumentError, match="method 'task_arithmetic' has the parameters scale; got 'scal'"):
        line_search(BASE, FINETUNED, _peak, grid={"scal": [1.0]}, reference=None)
    with pytest.raises(ArgumentError, match=r"density must be in \(0, 1\], got 0"):
        scale_grid(0)
