"""What a merge of files reads: models, statistics, and what tied names have to do with each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskarith_fast.checkpoint.sources import Source, open_source
from taskarith_fast.errors import ArgumentError, CheckpointError, TaskarithError
from taskarith_fast.merging.checks import FLOATS, differences
from taskarith_fast.merging.statistics import Statistics
from taskarith_fast.merging.tied_names import RenamedSource, common_ties, contradiction, held_names

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Copy:
    """A tensor that `source` holds apart from `own` though a model ties the two: it must be equal."""

    source: Source
    label: str
    name: str
    own: str


class collecting:
    """Turns an error of the package into a problem of the plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> bool:
        if isinstance(error, TaskarithError):
            self._plan.problems.append(error)
            return True
        return False


def open_inputs(plan: Plan, paths: Sequence[PathLike], kind: Statistics | None, statistics: Any) -> None:
    """Open all that a plan reads, every tied tensor under one name, and check that it fits together.

    Args:
        plan: Gets sources, statistics, ties and problems.
        paths: The base and the fine-tuned models.
        kind: What the method reads beside them, if anything.
        statistics: Its argument.
    """
    plan.sources = _open_all(plan, paths)
    if kind:
        plan.statistics_name = kind.parameter
        with collecting(plan):
            kind.check_count(statistics, len(paths) - 1)
            wrong = [type(path).__name__ for path in statistics if not isinstance(path, (str, os.PathLike))]
            if wrong:
                raise ArgumentError(f"{kind.parameter} must be paths when files are merged, got {wrong[0]}")
            plan.statistics = _open_all(plan, statistics)
    if not plan.sources:
        return
    _rename(plan)
    plan.problems += differences(plan.sources)
    if kind and plan.statistics:
        base = plan.sources[0].entries
        shapes = {name: base[name].shape for name in base if base[name].dtype in FLOATS}
        plan.problems += kind.misfits(shapes, [source.entries for source in plan.statistics], plan.parameters)


def _open_all(plan: Plan, paths: Sequence[PathLike]) -> list[Source]:
    """All of them, or none and why."""
    sources = []
    for path in paths:
        with collecting(plan):
            sources.append(_model(open_source(path)))
    return sources if len(sources) == len(paths) else []


def _model(source: Source) -> Source:
    """The source, if it is not a task vector."""
    if getattr(source, "metadata", {}).get("taskarith", "").endswith("task_vector"):
        raise CheckpointError(
            f"{source.path}: expected a model, got a task vector; apply it to the base, or use merge_task_vectors"
        )
    return source


def _rename(plan: Plan) -> None:
    """Let every input hold tied tensors by the names that they are merged under."""
    plan.tied = common_ties([s.entries for s in plan.sources], [s.tied for s in plan.sources])
    if plan.tied:
        labels = ["base", *(f"finetuned[{t}]" for t in range(plan.tasks))]
        plan.sources = [_renamed(plan, s, label) for s, label in zip(plan.sources, labels, strict=True)]
        plan.statistics = [_renamed(plan, s, f"{plan.statistics_name}[{t}]") for t, s in enumerate(plan.statistics)]


def _renamed(plan: Plan, source: Source, label: str) -> Source:
    held, copies = held_names(source.entries, plan.tied)
    for name, own in copies.items():
        one, other = source.entries[name], source.entries[own]
        if (one.dtype, one.shape) == (other.dtype, other.shape):
            plan.copies.append(Copy(source, label, name, own))
        else:
            plan.problems.append(contradiction(name, own, label))
    return RenamedSource(source, held)
