r"""Choose the parameters of a merge on validation data.

score(point) = mean_t acc_t(point) / ref_t, where ref_t is the accuracy of the model fine-tuned on task t
alone, on the same validation images (Ilharco 2023; METHODS of Ortiz 2023 and Hazimeh 2024: 21 values of
lambda from 0 to 1). Points are visited in ascending order and only a strictly better score replaces the best,
so the smallest scale of equals wins.

A grid over several parameters is searched whole, or one parameter after the other where a whole grid costs
too much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.evaluate import Evaluation, mean_accuracy, normalized_accuracy
from taskarith_fast.merging import merge
from taskarith_fast.progress import SILENT, Progress

State = Mapping[str, Tensor]
Parameters = dict[str, Any]
Grid = Mapping[str, Sequence[Any]]
EvaluateState = Callable[[Any], Mapping[str, Evaluation]]
MakeStates = Callable[[Sequence[Parameters]], Iterable[Any]]

SCALES = tuple(i / 20 for i in range(21))
"""The papers' grid of the scale lambda: 21 points from 0 to 1."""


@dataclass(frozen=True, eq=False)
class Point:
    """One merge of a search and how it did on the validation images."""

    parameters: dict[str, Any]
    """The method's parameters."""
    evaluations: Mapping[str, Evaluation]
    """Task name -> evaluation."""
    score: float
    """What the search maximises."""

    @property
    def mean(self) -> float:
        """Mean accuracy over the tasks."""
        return mean_accuracy(self.evaluations)


Judge = Callable[[Sequence[Parameters]], list[Point]]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found."""

    best: Point
    """The point with the highest score, the first of equals."""
    points: tuple[Point, ...]
    """Every point in the order visited."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters chosen."""
        return self.best.parameters

    def curve(self, name: str) -> tuple[list[Any], list[float]]:
        """Values of one parameter and the mean accuracies there, all others as chosen, in ascending order."""
        rest = {k: v for k, v in self.parameters.items() if k != name}
        found = {
            p.parameters[name]: p.mean
            for p in self.points
            if {k: v for k, v in p.parameters.items() if k != name} == rest
        }
        return sorted(found), [found[value] for value in sorted(found)]


def scale_grid(density: float = 1.0) -> tuple[float, ...]:
    """The papers' 21 scales, stretched by 1 / density for sparse fine-tuning (TaLoS, appendix).

    Args:
        density: Fraction of the weights that were trained, in (0, 1].
    """
    if not 0 < density <= 1:
        raise ArgumentError(f"density must be in (0, 1], got {density}")
    return tuple(scale / density for scale in SCALES)


def line_search(
    base: State,
    finetuned: Sequence[State],
    evaluate_state: EvaluateState,
    method: str = "task_arithmetic",
    grid: Grid | None = None,
    *,
    reference: Mapping[str, Evaluation] | None,
    fixed: Mapping[str, Any] | None = None,
    make_states: MakeStates | None = None,
    one_at_a_time: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Merge at the points of a grid and choose by validation accuracy.

    Args:
        base: The pre-trained state.
        finetuned: The fine-tuned states.
        evaluate_state: State -> evaluations on VALIDATION images, such as a `StateEvaluator`; or what `make_states`
            makes -> evaluations.
        method: A name from ``merge_methods()``.
        grid: Parameter -> values; None for the scale at 21 points from 0 to 1.
        reference: Task -> evaluation of the model fine-tuned on it alone, on the same images; the score is
            then the normalised accuracy. None scores by the mean accuracy.
        fixed: Parameters that every point shares.
        make_states: Points -> their states, in order; None merges each point by itself. A method that can
            share work between points comes in here.
        one_at_a_time: Choose the parameters in the grid's order, each with those before it as chosen and
            those
            after it at their middle value: as many points as the lengths' sum, not their product, and no
                promise
            to find the best of the whole grid.
        progress: Shows a bar.

    Returns:
        All points and the best; ``merge(base, finetuned, method, **result.parameters)`` is the state chosen.

    Raises:
        ArgumentError: If the grid is empty or a parameter is not known.
    """
    if make_states is None:

        def make_states(points: Sequence[Parameters]) -> Iterator[State]:
            return (merge(base, finetuned, method, **point) for point in points)

    axes = _ascending({"scale": SCALES} if grid is None else grid)
    plan = _one_at_a_time if one_at_a_time else _whole
    with (progress or SILENT).stage(f"search {method}", _count(axes, one_at_a_time)) as stage:

        def judge(points: Sequence[Parameters]) -> list[Point]:
            judged = []
            for parameters, state in zip(points, make_states(points), strict=True):
                evaluations = evaluate_state(state)
                judged.append(Point(parameters, evaluations, _score(evaluations, reference)))
                stage.advance(note=f"{judged[-1].mean:.3f}")
            return judged

        points = plan(axes, dict(fixed or {}), judge)
    return SearchResult(_best(points, axes), tuple(points))


def _whole(axes: Grid, fixed: Parameters, judge: Judge) -> list[Point]:
    """Every point of the grid, the last parameter varying fastest."""
    return judge([fixed | dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())])


def _one_at_a_time(axes: Grid, fixed: Parameters, judge: Judge) -> list[Point]:
    """One line of the grid for each parameter; a point that two lines share is judged once."""
    chosen = fixed | {name: values[len(values) // 2] for name, values in axes.items()}
    points: list[Point] = []
    for name, values in axes.items():
        line = [chosen | {name: value} for value in values]
        known = [point for point in points if point.parameters in line]
        fresh = judge([parameters for parameters in line if parameters not in [p.parameters for p in known]])
        points += fresh
        chosen = _best(known + fresh, axes).parameters
    return points


def _best(points: Sequence[Point], axes: Grid) -> Point:
    """The highest score; of equals the first in the grid's order, as the papers' strict comparison gives."""
    return min(points, key=lambda p: (-p.score, [axes[name].index(p.parameters[name]) for name in axes]))


def _score(evaluations: Mapping[str, Evaluation], reference: Mapping[str, Evaluation] | None) -> float:
    return mean_accuracy(evaluations) if reference is None else normalized_accuracy(evaluations, reference)


def _ascending(grid: Grid) -> dict[str, list[Any]]:
    """The grid with the numbers of each parameter sorted, other values (such as names) in their order."""
    axes = {}
    for name, values in grid.items():
        if not len(values):
            raise ArgumentError(f"grid[{name!r}] must hold at least one value, got none")
        numbers = all(isinstance(value, (int, float)) for value in values)
        axes[name] = sorted(values) if numbers else list(values)
    if not axes:
        raise ArgumentError("grid must have at least one parameter, got none")
    return axes


def _count(axes: Grid, one_at_a_time: bool) -> int:
    lengths = [len(values) for values in axes.values()]
    return sum(lengths) - len(lengths) + 1 if one_at_a_time else math.prod(lengths)
