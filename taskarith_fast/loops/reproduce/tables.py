"""Protocols of the papers' tables: a study, its rows beside the published ones, and the paper's statements checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot

from taskarith_fast.analysis.outcome import Check, Outcome, Table, number, percent
from taskarith_fast.analysis.results import Measured, Results, Row
from taskarith_fast.loops.reproduce.bench import Bench
from taskarith_fast.loops.reproduce.published import Published

Place = tuple[str, str]
"""Recipe and method of a row here."""

_MEASURES: dict[str, Callable[[Row], Measured]] = {"abs": lambda r: r.mean, "norm": lambda r: r.normalized_mean}


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
    rows = [_row(found, place) for place in places]
    ours = ["here, " + column for column in (["single"] if single else []) + (["abs"] if by_task else ["abs", "norm"])]
    tasks = bench.tasks if by_task else []
    shown = published.columns[-1:] if by_task else published.columns[1:]
    columns = [published.columns[0], *ours, *tasks, *(f"paper, {c}" for c in shown)]
    lines = []
    for theirs, place, row in zip(published.rows, places, rows, strict=True):
        alone = _row(found, (place[0], "individual")) if place and place[0] else None
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
    probe, single, added = (_need(found, ("full", m)) for m in ("probe", "individual", "task_arithmetic"))
    scale = ", ".join(f"{choice['scale']:g}" for choice in added.hyperparameters)
    table = Table(
        "Accuracy (%)",
        ["encoder", "probing", "single-task", "addition", "addition, normalised", "scale"],
        [[bench.setting.config.encoder, percent(probe.mean), percent(single.mean), percent(added.mean),
          percent(added.normalized_mean), scale]],
        "The paper's values are not in the text that we have; --encoder runs other pre-trained encoders.",
    )  # fmt: skip
    gain = added.over_probe
    return Outcome(
        [table],
        [
            Check("task addition is above linear probing", 100 * gain.value, 100 * gain.stderr),
            Check("by 2 points or more", 100 * gain.value - 2, 100 * gain.stderr),
        ],
    )


def negation(bench: Bench, published: Published, *, recipes: Sequence[str | None]) -> Outcome:
    """Every task forgotten under the control rule; `recipes` are the counterparts of the published rows."""
    names = _with_full([r for r in recipes if r])
    found = bench.study(*names, negation_scales=(0.25, 0.5, 0.75, 1.0))
    first = [n for n in found.negation if n.recipe == names[0]]
    before = (_mean([n.target_before for n in first]), _mean([n.control_before for n in first]))
    lines, after = [], {}
    for theirs, recipe in zip(published.rows, recipes, strict=True):
        mine = [n for n in found.negation if n.recipe == recipe]
        pair = (_mean([n.target_after for n in mine]), _mean([n.control_after for n in mine])) if mine else None
        if recipe == "":
            pair = before
        if pair and recipe:
            after[recipe] = pair[0]
        printed = [percent(m) for m in pair] if pair else ["", ""]
        lines.append([str(theirs[0]), *printed, *map(number, theirs[1:])])
    columns = ["method", "here, target", "here, control", *(f"paper, {c}" for c in published.columns[1:])]
    note = (
        "Target: lower is better. The control of each task is the next task here, ImageNet in the paper. "
        "± is one standard error over the test images."
    )
    checks = [_lower(f"{recipe} forgets more than full fine-tuning", after["full"], after[recipe])
              for recipe in ("talos", "linearized") if recipe in after]  # fmt: skip
    return Outcome([Table("Accuracy (%)", columns, lines, note)], checks)


def iteration_cost(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Seconds and memory of a training iteration, by recipe."""
    found = bench.study(*_with_full(recipes))
    costs = {cost.recipe: cost for cost in found.costs}
    lines = [
        [recipe, f"{costs[recipe].forward_backward:.4f}", f"{costs[recipe].step:.4f}",
         f"{costs[recipe].forward_backward + costs[recipe].step:.4f}", f"{costs[recipe].peak_rss_mb / 1024:.2f}"]
        for recipe in recipes
    ]  # fmt: skip
    here = Table(
        "Here",
        ["recipe", "forward and backward (s)", "optimizer (s)", "total (s)", "peak (GiB, process)"],
        lines,
        "Medians over all steps of all runs on this machine, batch "
        f"{found.config['recipes']['full']['batch_size']}; reading the images is counted in.",
    )
    theirs = Table("The paper's table", list(published.columns), _printed(published))
    total = {r: costs[r].forward_backward + costs[r].step for r in recipes}
    checks = [
        Check(f"an iteration of talos is faster than one of {other}", total[other] - total["talos"], None, "s")
        for other in ("full", "linearized")
    ]
    return Outcome([here, theirs], checks)


def stage_cost(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Seconds of calibrating masks and of training, summed over the tasks."""
    found = bench.study(*_with_full(recipes))
    lines, total = [], {}
    for theirs, recipe in zip(published.rows, recipes, strict=True):
        spent = {
            group: sum(t.seconds for t in found.timing if t.group == group and f"-{recipe}-" in t.stage)
            for group in ("Selecting weights", "Fine-tuning")
        }
        total[recipe] = sum(spent.values())
        shown = [f"{s:.1f}" for s in (*spent.values(), total[recipe])]
        lines.append([str(theirs[0]), *shown, *(number(v) for v in theirs[1:4])])
    paper = [f"paper, {column}" for column in published.columns[1:4]]
    columns = ["method", "here, masks s", "here, training s", "here, total s", *paper]
    note = "Here: summed over the tasks; LoTA's full fine-tuning, which its masks come from, is not counted."
    checks = [
        Check(f"talos takes less time in all than {r}", total[r] - total["talos"], None, "s")
        for r in ("full", "linearized")
    ]
    return Outcome([Table("Time", columns, lines, note)], checks)


def _compared(found: Results, statement: Better) -> Check:
    one, other = _need(found, statement.one), _need(found, statement.other)
    words = f"{_name(one)} is above {_name(other)}"
    measure = _MEASURES[statement.measure]
    a, b = measure(one), measure(other)
    if other.method == "probe" and statement.measure == "abs":
        return Check(words, 100 * one.over_probe.value, 100 * one.over_probe.stderr)
    kind = "in normalised accuracy" if statement.measure == "norm" else "in accuracy"
    return Check(f"{words} {kind}", 100 * (a.value - b.value), 100 * hypot(a.stderr, b.stderr))


def _lower(words: str, reference: Measured, ours: Measured) -> Check:
    return Check(words, 100 * (reference.value - ours.value), 100 * hypot(reference.stderr, ours.stderr))


def _name(row: Row) -> str:
    return f"{row.label} ({row.recipe})" if row.recipe else row.label


def _row(found: Results, place: Place | None) -> Row | None:
    return None if place is None else found.row(place[1], place[0])


def _need(found: Results, place: Place) -> Row:
    row = _row(found, place)
    assert row is not None, place
    return row


def _mean(values: Sequence[Measured]) -> Measured:
    value = sum(m.value for m in values) / len(values)
    return Measured(value=value, stderr=sum(m.stderr**2 for m in values) ** 0.5 / len(values))


def _printed(published: Published) -> list[list[str]]:
    return [[number(value) for value in row] for row in published.rows]


def _with_full(recipes: Sequence[str]) -> list[str]:
    """The recipes, full fine-tuning before those that are made from it."""
    return ["full", *(r for r in recipes if r != "full")] if "lota" in recipes else list(recipes)
