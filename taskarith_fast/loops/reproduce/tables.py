"""Protocols of the papers' tables: a study, its rows beside the published ones, and the paper's statements checked."""

from __future__ import annotations

import statistics as numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskarith_fast.analysis.outcome import Check, Outcome, Table, number, percent
from taskarith_fast.analysis.results import Measured
from taskarith_fast.loops import statistics
from taskarith_fast.loops.reproduce.bench import Bench
from taskarith_fast.loops.reproduce.published import Published
from taskarith_fast.loops.reproduce.study import Study, in_points
from taskarith_fast.loops.results import Place
from taskarith_fast.loops.step_clock import PARTS

Laps = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Better:
    """The statement that one row is above another in accuracy, or with "norm" in normalised accuracy."""

    one: Place
    other: Place
    measure: str = "abs"


def addition(
    bench: Bench,
    published: Published,
    *,
    places: Sequence[Place | None],
    better: Sequence[Better],
    more: Mapping[str, tuple[str, ...]] | None = None,
    single: bool = False,
    by_task: bool = False,
    extra_rows: bool = False,
) -> Outcome:
    """Task addition.

    Args:
        bench: Where it runs.
        published: The paper's table.
        places: Of each published row its counterpart here, None where there is none.
        better: The paper's ordering.
        more: Recipe -> merge methods beyond the demo's.
        single: Show single-task accuracy too.
        by_task: Show every task's accuracy instead of the normalised one.
        extra_rows: Train jointly too.
    """
    recipes = list(dict.fromkeys(place[0] for place in places if place and place[0]))
    found = bench.study(*_with_full(recipes), more_merges=dict(more or {}), extra_rows=extra_rows)
    rows = [found.row(place) for place in places]
    ours = ["here, " + column for column in (["single"] if single else []) + (["abs"] if by_task else ["abs", "norm"])]
    tasks = bench.tasks if by_task else []
    shown = published.columns[-1:] if by_task else published.columns[1:]
    columns = [published.columns[0], *ours, *tasks, *(f"paper, {c}" for c in shown)]
    lines = []
    for theirs, place, row in zip(published.rows, places, rows, strict=True):
        alone = found.row((place[0], "individual")) if place and place[0] else None
        numbers = [percent(alone.mean if alone else None)] if single else []
        numbers.append(percent(row.mean if row else None))
        if not by_task:
            numbers.append(percent(row.normalized_mean if row and row.method != "probe" else None))
        numbers += [percent(row.accuracy[task] if row else None) for task in tasks]
        lines.append([str(theirs[0]), *numbers, *(number(v) for v in theirs[len(theirs) - len(shown) :])])
    note = "± is one standard error over the test images. Empty: not in the paper, or without a counterpart here."
    tables = [Table("Accuracy (%)", columns, lines, note)]
    if by_task:
        tables.append(Table("The paper's table", list(published.columns), _printed(published)))
    return Outcome(tables, [_compared(found, statement) for statement in better])


def probing(bench: Bench, published: Published) -> Outcome:
    """Linear probing, single-task and task-addition accuracy of one backbone, with a head fixed beforehand."""
    found = bench.study("full")
    probe, single, added = (found.need(("full", m)) for m in ("probe", "individual", "task_arithmetic"))
    scale = ", ".join(f"{choice['scale']:g}" for choice in added.hyperparameters)
    table = Table(
        "Accuracy (%)",
        ["probing", "single-task", "addition", "addition, normalised", "scale"],
        [[percent(probe.mean), percent(single.mean), percent(added.mean), percent(added.normalized_mean), scale]],
        "The paper's values are not in the text that we have; --encoder runs other pre-trained encoders.",
    )  # fmt: skip
    gain = added.over_probe
    return Outcome(
        [table],
        [in_points("task addition is above linear probing", gain), in_points("by 2 points or more", gain, beyond=2)],
    )


def negation(bench: Bench, published: Published, *, recipes: Sequence[str | None]) -> Outcome:
    """Every task forgotten under the control rule; `recipes` are the counterparts of the published rows."""
    names = _with_full([r for r in recipes if r])
    found = bench.study(*names, negation_scales=(0.25, 0.5, 0.75, 1.0))
    negation = found.results.negation
    first = [n for n in negation if n.recipe == names[0]]
    before = (_mean([n.target_before for n in first]), _mean([n.control_before for n in first]))
    lines = []
    for theirs, recipe in zip(published.rows, recipes, strict=True):
        mine = [n for n in negation if n.recipe == recipe]
        pair = (_mean([n.target_after for n in mine]), _mean([n.control_after for n in mine])) if mine else None
        if recipe == "":
            pair = before
        printed = [percent(m) for m in pair] if pair else ["", ""]
        lines.append([str(theirs[0]), *printed, *map(number, theirs[1:])])
    columns = ["method", "here, target", "here, control", *(f"paper, {c}" for c in published.columns[1:])]
    note = (
        "Target: lower is better. The control of each task is the next task here, ImageNet in the paper. "
        "± is one standard error over the test images."
    )
    checks = [
        in_points(f"{recipe} forgets more than full fine-tuning", found.above(("full", "negate"), (recipe, "negate")))
        for recipe in ("talos", "linearized") if recipe in names
    ]  # fmt: skip
    return Outcome([Table("Accuracy (%)", columns, lines, note)], checks)


def iteration_cost(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Seconds and memory of a training iteration, by recipe."""
    names = _with_full(recipes)
    found = bench.study(*names)
    seconds, memory = bench.step_seconds(*names), {cost.recipe: cost.peak_rss_mb for cost in found.results.costs}
    lines = []
    for recipe in recipes:
        parts = [numbers.median(laps[part] for laps in seconds[recipe]) for part in PARTS]
        lines.append([recipe, *(f"{s:.4f}" for s in (*parts, sum(parts))), f"{memory[recipe] / 1024:.2f}"])
    here = Table(
        "Here",
        ["recipe", "forward and backward (s)", "optimizer (s)", "total (s)", "peak (GiB, process)"],
        lines,
        f"Batch {found.results.config['recipes']['full']['batch_size']}, reading the images counted in; medians of a "
        "few steps, of rounds in which the recipes took turns. The peak is of the runs that trained the models.",
    )
    theirs = Table("The paper's table", list(published.columns), _printed(published))
    checks = [
        _faster(f"an iteration of talos is faster than one of {other}", seconds["talos"], seconds[other])
        for other in ("full", "linearized")
    ]
    return Outcome([here, theirs], checks)


def stage_cost(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Seconds of calibrating masks and of training, summed over the tasks."""
    names = _with_full(recipes)
    found, seconds = bench.study(*names), bench.step_seconds(*names)
    lines, masks = [], {}
    for theirs, recipe in zip(published.rows, recipes, strict=True):
        timing = [t for t in found.results.timing if t.group == "Selecting weights" and f"-{recipe}-" in t.stage]
        masks[recipe] = sum(t.seconds for t in timing)
        training = bench.steps(recipe) * numbers.median(sum(laps.values()) for laps in seconds[recipe])
        shown = [f"{s:.1f}" for s in (masks[recipe], training, masks[recipe] + training)]
        lines.append([str(theirs[0]), *shown, *(number(v) for v in theirs[1:4])])
    paper = [f"paper, {column}" for column in published.columns[1:4]]
    columns = ["method", "here, masks s", "here, training s", "here, total s", *paper]
    note = (
        "Here: summed over the tasks. Training is its number of steps times a step's time, for which the recipes took "
        "turns; masks as long as they took when they were made. LoTA's full fine-tuning, which its masks come from, is "
        "not counted."
    )
    checks = [
        _faster(f"talos takes less time in all than {r}", seconds["talos"], seconds[r],
                (bench.steps("talos"), bench.steps(r)), masks["talos"] - masks[r])
        for r in ("full", "linearized")
    ]  # fmt: skip
    return Outcome([Table("Time", columns, lines, note)], checks)


def _faster(statement: str, one: Laps, other: Laps, steps: tuple[int, int] = (1, 1), more: float = 0.0) -> Check:
    """That steps of one recipe take less time than those of another, by rounds; the first takes `more` besides."""
    gaps = [
        steps[1] * sum(theirs.values()) - steps[0] * sum(ours.values()) - more
        for ours, theirs in zip(one, other, strict=True)
    ]
    return Check(statement, numbers.mean(gaps), numbers.stdev(gaps) / len(gaps) ** 0.5, "s")


def _compared(found: Study, statement: Better) -> Check:
    one, other, measure = statement.one, statement.other, statement.measure
    kind = "in normalised accuracy" if measure == "norm" else "in accuracy"
    return in_points(f"{found.name(one)} is above {found.name(other)} {kind}", found.above(one, other, measure))


def _mean(values: Sequence[Measured]) -> Measured:
    return statistics.mean_of(dict(enumerate(values)))


def _printed(published: Published) -> list[list[str]]:
    return [[number(value) for value in row] for row in published.rows]


def _with_full(recipes: Sequence[str]) -> list[str]:
    """The recipes, full fine-tuning before those that are made from it."""
    return ["full", *(r for r in recipes if r != "full")] if "lota" in recipes else list(recipes)
