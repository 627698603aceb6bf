"""Grids and sets of tasks: what they hold, and what is refused."""

import pytest

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.sweep.grid import axes_of, complete, expand, subsets_of


def test_lists_are_swept_and_the_last_key_varies_fastest():
    points = expand({"method": "ties", "density": [0.1, 0.2], "scale": [1, 2]}, "merge[0]")
    assert [(p["density"], p["scale"]) for p in points] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert all(p["method"] == "ties" for p in points)


def test_a_range_holds_both_ends_and_short_decimals():
    scale = axes_of({"scale": {"start": 0.0, "stop": 1.0, "count": 21}}, "merge[0]")["scale"]
    assert len(scale) == 21 and scale[0] == 0 and scale[-1] == 1 and scale[6] == 0.3
    assert axes_of({"scale": {"start": 2, "stop": 5, "count": 1}}, "m")["scale"] == [2]


def test_a_list_of_lists_sweeps_lists():
    assert axes_of({"scale": [[0.1, 0.2], [0.3, 0.4]]}, "m")["scale"] == [[0.1, 0.2], [0.3, 0.4]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"merge\[0\].scale must hold at least one value, got none"),
        ([1, 2, 1], "must hold different values, got 1 twice"),
        ({"start": 0, "stop": 1}, "must be a value, a list, or a range of start, stop and count"),
        ({"start": 0, "stop": 1, "count": 0}, "in count steps"),
        ({"start": 0, "stop": float("inf"), "count": 3}, "from a number to a number"),
        ({"start": "a", "stop": 1, "count": 3}, "from a number to a number"),
    ],
)
def test_an_impossible_axis_is_refused(value, message):
    with pytest.raises(ArgumentError, match=message):
        axes_of({"scale": value}, "merge[0]")


def test_a_grid_without_end_is_refused():
    with pytest.raises(ArgumentError, match=r"train\[1\] must have at most 1000000 combinations, got 1002001"):
        axes_of({"a": list(range(1001)), "b": list(range(1001))}, "train[1]")


def test_parameters_get_their_defaults():
    assert complete("ties", {"density": 0.1}, 3, "m") == {
        "density": 0.1, "scale": 1.0, "elect": "mass", "combine": "mean", "count_rule": "exact",
        "zero_sign": "global_majority", "scope": "global",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("tise", {}, r"merge\[0\]: method must be one of .*got 'tise'; did you mean 'ties'\?"),
        ("ties", {"densty": 0.1}, "got 'densty'; did you mean 'density'"),
        ("ties", {"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ("ties", {"density": "many"}, "ties refuses density='many'"),
        ("cart", {"rank_ratio": 0}, "rank_ratio must be in"),
        ("task_arithmetic", {"scale": [0.1, 0.2]}, "scale must be one number or 3"),
        ("fisher", {}, "method 'fisher' needs fishers, from ta.fisher_diagonal; a sweep merges weights only"),
        ("adamerging", {}, "learns from images"),
        ("tall_mask", {}, "method must be one of"),
    ],
)
def test_a_point_that_cannot_be_merged_is_refused(method, parameters, message):
    with pytest.raises(ArgumentError, match=message) as found:
        complete(method, parameters, 3, "merge[0]")
    assert "\n" not in str(found.value)


def test_sets_of_tasks():
    names = ["a", "b", "c"]
    assert subsets_of(names, [], []) == [("a", "b", "c")]
    assert subsets_of(names, [["c", "a"]], []) == [("a", "c")]
    assert subsets_of(names, [["b", "a"]], [2]) == [("a", "b"), ("a", "c"), ("b", "c")]
    for bad, message in (([["d"]], "got 'd'"), ([[]], "at least one"), ([["a", "a"]], "different tasks")):
        with pytest.raises(ArgumentError, match=message):
            subsets_of(names, bad, [])
