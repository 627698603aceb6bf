"""A [[merge]] table: its points, and what they can share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.loops.sweep.grid import Point, complete, expand
from taskarith_fast.merging.sharing import split_scale

_KEYS = ("scale_over_density", "judge")
JUDGE = ("merged", "all")


@dataclass(frozen=True)
class Grid:
    """All points of a table."""

    points: list[tuple[str, Point]]
    """Method, and the parameters that the table gives."""
    stretch: bool
    """Divide every scale by the density that was trained."""
    judge_all: bool
    """Judge on all tasks of the sweep, not only on those merged."""


@dataclass(frozen=True)
class Shared:
    """What a point has in common with others."""

    work: Any
    """Points of equal work share it."""
    order: tuple[Any, ...]
    """Sorted by it, points of one direction follow each other."""
    max_rank_ratio: float | None
    """The rank of CART's common decompositions; None where there are none."""


def read_grid(table: Mapping[str, Any], where: str, sizes: set[int]) -> Grid:
    """Expand a table; every point is seen to work on a toy of each of `sizes` models.

    Raises:
        ArgumentError: If the table or one of its points is wrong.
    """
    if "method" not in table:
        raise ArgumentError(f"{where}.method must name a merge method, got none")
    stretch, judge = table.get("scale_over_density", False), table.get("judge", JUDGE[0])
    if not isinstance(stretch, bool):
        raise ArgumentError(f"{where}.scale_over_density must be true or false, got {stretch!r}")
    check_choice(f"{where}.judge", judge, JUDGE)
    points = []
    for point in expand({name: value for name, value in table.items() if name not in _KEYS}, where):
        method, given = point["method"], {name: value for name, value in point.items() if name != "method"}
        for size in sizes:
            parameters = complete(method, given, size, where)
        if stretch and split_scale(method, parameters) is None:
            raise ArgumentError(f"{where}.scale_over_density needs a scale that is one number, {method!r} has none")
        points.append((method, given))
    return Grid(points, stretch, judge == "all")


def shared_of(grid: Grid, method: str, parameters: Point) -> Shared:
    """What a point, with all its parameters, has in common with the others of its table.

    Points of one method share the models; those that differ in the scale alone share a direction; CART's of all ranks
    share their decompositions, at the largest rank of the table.
    """
    split = split_scale(method, parameters)
    rest = dict(parameters) if split is None else split[0]
    scale = 0.0 if split is None else split[1]
    if method != "cart" or parameters["energy"] is not None or parameters["order"] != "largest":
        return Shared(method, (str(rest), 0.0, scale), None)
    own = rest.pop("rank_ratio")
    most = max(point.get("rank_ratio", own) for name, point in grid.points if name == "cart")
    return Shared([method, rest], (str(rest), own, scale), most)
