"""A merging study as protocols read it: its results, and comparisons of two of its models image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskarith_fast.analysis.outcome import Check
from taskarith_fast.analysis.results import Measured, Results, Row
from taskarith_fast.loops import statistics
from taskarith_fast.loops.results import Place
from taskarith_fast.loops.statistics import Correct


@dataclass(frozen=True)
class Study:
    """What a study found, and which test images every model of it has right."""

    results: Results
    right: Mapping[Place, Correct]
    """(recipe, method) -> test images; the probe is ("", "probe"), see `loops.results.right_answers`."""

    def row(self, place: Place | None) -> Row | None:
        """The row of a recipe and method, if there is one."""
        return None if place is None else self.results.row(place[1], place[0])

    def need(self, place: Place) -> Row:
        """The row of a recipe and method that the study has."""
        row = self.row(place)
        assert row is not None, place
        return row

    def name(self, place: Place) -> str:
        """What a row is called in a statement."""
        row = self.need(place)
        return f"{row.label} ({row.recipe})" if row.recipe else row.label

    def above(self, one: Place, other: Place, measure: str = "abs", other_study: Study | None = None) -> Measured:
        """Mean accuracy of a row minus that of another, or with "norm" normalised accuracy, paired by image.

        The other may be a row of another study on the same images.
        """
        second = other_study or self
        ours, theirs = self.right[one], second.right[other]
        if measure == "abs":
            return statistics.mean_of(statistics.differences(ours, theirs))
        return statistics.mean_of(statistics.ratio_differences(ours, self._own(one), theirs, second._own(other)))

    def _own(self, place: Place) -> Correct:
        """The models of single tasks that a row is normalised by; the probe by the first recipe's."""
        return self.right[place[0] or next(recipe for recipe, _ in self.right if recipe), "individual"]


def split_by_task(values: np.ndarray, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Values [sum N_v] of the images of an analysis's tasks, one task's after the other's, as float64 by task."""
    parts = torch.from_numpy(values.astype(np.float64)).split(arrays["images"].tolist())
    return dict(zip(arrays["tasks"].tolist(), parts, strict=True))


def in_points(statement: str, difference: Measured, beyond: float = 0.0) -> Check:
    """The statement that a difference of accuracies is positive, or more than `beyond` points."""
    return Check(statement, 100 * difference.value - beyond, 100 * difference.stderr)
