"""Protocols of the figures that are curves: along the rank, the scale, the density, the number of tasks, the steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Any

import numpy as np

from taskarith_fast.analysis.figures import linearity_figure, sensitivity_figure
from taskarith_fast.analysis.outcome import Check, Outcome, Table, percent
from taskarith_fast.analysis.results import Measured
from taskarith_fast.loops.reproduce.bench import Arrays, Bench, drawn, drawn_light
from taskarith_fast.loops.reproduce.published import Published

_RANKS = [0.0, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0]
_BEST = 0.08
DENSITIES = (0.01, 0.05, 0.1, 0.3, 0.5, 1.0)


def ranks(
    bench: Bench, published: Published, *, orders: Sequence[str] = ("largest",), origins: Sequence[str] = ("average",),
    kind: str = "rank_sweep", by_task: bool = False,
) -> Outcome:  # fmt: skip
    """Accuracy along the rank, each statement at the paper's 8 %: no rank is chosen on test images."""
    words: dict[str, Any] = {"rank_ratios": _RANKS, "orders": list(orders), "origins": list(origins)}
    arrays = bench.analyze(kind, "full", **words)
    best, full = _RANKS.index(_BEST), len(_RANKS) - 1

    def difference(statement: str, one: tuple[int, int, int], other: tuple[int, int, int]) -> Check:
        a, b = (_measured(arrays, place) for place in (one, other))
        return Check(statement, 100 * (a.value - b.value), 100 * hypot(a.stderr, b.stderr))

    checks, order = [], {name: d for d, name in enumerate(orders)}
    for o, origin in enumerate(origins):
        if {"largest", "smallest"} <= set(orders):
            checks.append(difference(f"around the {origin}, the strongest 8 % do better than the weakest 8 %",
                                     (o, order["largest"], best), (o, order["smallest"], best)))  # fmt: skip
        elif kind == "routing":
            checks.append(difference("8 % of the rank is above the average", (o, 0, best), (o, 0, 0)))
        elif origin == "average":
            checks.append(difference("around the average the curve is a bell: 8 % is above both its ends, the average",
                                     (o, 0, best), (o, 0, full)))  # fmt: skip
        else:
            checks.append(difference("around the base it rises: full rank is above 8 %", (o, 0, full), (o, 0, best)))
    columns = ["rank kept", *(f"{a}, {d}" for a in origins for d in orders)]
    lines = [
        [
            f"{100 * r:g} %",
            *(percent(_measured(arrays, (*place, i))) for place in np.ndindex(len(origins), len(orders))),
        ]
        for i, r in enumerate(_RANKS)
    ]
    note = "Scale 1 around the average, 0.3 (routed: 1) around the base."
    tables = [Table("Mean test accuracy (%)", columns, lines, note)]
    if by_task:
        values = arrays["accuracy"][0, 0]
        rows = [[f"{100 * r:g} %", *(f"{100 * v:.1f}" for v in values[i])] for i, r in enumerate(_RANKS)]
        tables.append(Table("By task (%)", ["rank kept", *bench.tasks], rows))
    return Outcome(tables, checks, {"Mean accuracy along the rank": drawn(kind, arrays)})


def task_counts(bench: Bench, published: Published, *, methods: dict[str, dict[str, Any]]) -> Outcome:
    """Accuracy of merges of all subsets of the tasks; `methods` are parameters with their scales."""
    found = {m: bench.analyze("task_count", "full", method=m, **words) for m, words in methods.items()}
    sizes = range(1, len(bench.tasks) + 1)
    normalized = {m: [_by_size(arrays, size) for size in sizes] for m, arrays in found.items()}
    lines = [[str(size), *(f"{100 * normalized[m][i]:.1f}" for m in methods)] for i, size in enumerate(sizes)]
    checks = []
    names = list(methods)
    if len(names) > 1:
        checks = [Check(f"{names[-1]} is above {names[0]} with all {len(bench.tasks)} tasks",
                        100 * (normalized[names[-1]][-1] - normalized[names[0]][-1]),
                        100 * hypot(*(_last_error(found[m]) for m in (names[0], names[-1]))))]  # fmt: skip
    else:
        fall = 100 * (normalized[names[0]][0] - normalized[names[0]][-1])
        words = "normalised accuracy falls as tasks are added, from one to all"
        checks = [Check(words, fall, 100 * _last_error(found[names[0]]))]
    figures = {f"{m}: a dot a subset": drawn("task_count", arrays) for m, arrays in found.items()}
    table = Table("Normalised accuracy (%), mean over subsets", ["tasks merged", *names], lines)
    return Outcome([table], checks, figures)


def scales(bench: Bench, published: Published) -> Outcome:
    """Normalised accuracy along lambda."""
    arrays = bench.analyze("lambda_curve", "full")
    curve, at = arrays["normalized"], arrays["scales"]
    lines = [[f"{s:g}", f"{100 * v:.1f}"] for s, v in zip(at, curve, strict=True)]
    added = bench.study("full").row("task_arithmetic", "full")
    assert added is not None
    gain = added.over_probe
    statement = "the scale that validation chooses is above lambda = 0, which is probing"
    checks = [Check(statement, 100 * gain.value, 100 * gain.stderr)]
    table = Table("Normalised test accuracy (%)", ["lambda", "mean over tasks"], lines)
    return Outcome([table], checks, {"Accuracy along lambda": drawn("lambda_curve", arrays)})


def densities(bench: Bench, published: Published) -> Outcome:
    """TaLoS at several densities."""
    lines, found = [], {}
    for density in DENSITIES:
        results = bench.study("talos", mask_density=density)
        single, added = (results.row(m, "talos") for m in ("individual", "task_arithmetic"))
        assert single is not None and added is not None
        found[density] = added
        lines.append([f"{100 * (1 - density):g} %", percent(single.mean), percent(added.mean),
                      percent(added.normalized_mean)])  # fmt: skip
    table = Table("Accuracy (%)", ["sparsity", "single-task", "abs", "norm"], lines)
    checks = []
    for other in (0.01, 1.0):
        a, b = found[0.1].normalized_mean, found[other].normalized_mean
        words = f"90 % sparsity is above {100 * (1 - other):g} % in normalised accuracy"
        checks.append(Check(words, 100 * (a.value - b.value), 100 * hypot(a.stderr, b.stderr)))
    return Outcome([table], checks)


def single_tasks(
    bench: Bench, published: Published, *, recipes: Sequence[str], above: Sequence[tuple[str, str]]
) -> Outcome:
    """Single-task accuracy of every recipe; `above` are pairs of which the first is said to be higher."""
    need = ["full", *(r for r in recipes if r != "full")] if "lota" in recipes else list(recipes)
    study = bench.study(*need)
    rows = {recipe: study.row("individual", recipe) for recipe in recipes}
    means = {recipe: row.mean for recipe, row in rows.items() if row}
    lines = [[r, percent(row.mean), *(percent(row.accuracy[t]) for t in bench.tasks)] for r, row in rows.items() if row]
    checks = [
        Check(f"{one} is above {other}", 100 * (means[one].value - means[other].value),
              100 * hypot(means[one].stderr, means[other].stderr))
        for one, other in above
    ]  # fmt: skip
    arrays = {
        "accuracy": np.array([[row.accuracy[t].value for t in bench.tasks] for row in rows.values() if row]),
        "tasks": np.array(bench.tasks), "recipes": np.array(list(means)),
    }  # fmt: skip
    table = Table("Single-task accuracy (%)", ["recipe", "mean", *bench.tasks], lines)
    return Outcome([table], checks, {"Single-task accuracy": drawn("radar", arrays)})


def post_hoc(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Fine-tuned encoders against their linearization."""
    study = bench.study(*recipes, post_hoc=True)
    lines, loss = [], {}
    for recipe in recipes:
        mine = [line for line in study.linearity if line.recipe == recipe]
        loss[recipe] = Measured(value=-sum(m.difference.value for m in mine) / len(mine),
                                stderr=sum(m.difference.stderr**2 for m in mine) ** 0.5 / len(mine))  # fmt: skip
        lines += [[recipe, m.task, percent(m.ordinary), percent(m.linearized), percent(m.difference)] for m in mine]
    a, b = loss["full"], loss["talos"]
    checks = [Check("linearization costs talos less than full fine-tuning", 100 * (a.value - b.value),
                    100 * hypot(a.stderr, b.stderr))]  # fmt: skip
    columns = ["recipe", "task", "fine-tuned", "linearized", "difference"]
    figure = drawn_light(lambda: linearity_figure(study))
    figures = {"A point a task; on the diagonal linearization loses nothing": figure}
    return Outcome([Table("Accuracy (%)", columns, lines)], checks, figures)


def sensitivity(bench: Bench, published: Published) -> Outcome:
    """How far per-image gradients move in training."""
    study = bench.study("full", "talos", sensitivity=("full", "talos"))
    curves = {curve.recipe: curve for curve in study.sensitivity}
    lines = [[r, *(f"{c:.3f}" for c in curve.change)] for r, curve in curves.items()]
    steps = [f"step {s}" for s in next(iter(curves.values())).step]
    checks = [Check("gradients move less under talos than under full fine-tuning",
                    curves["full"].change[-1] - curves["talos"].change[-1], None, "relative")]  # fmt: skip
    figure = drawn_light(lambda: sensitivity_figure(study))
    title = f"Relative change of per-image gradients, {next(iter(curves.values())).task}"
    return Outcome([Table(title, ["recipe", *steps], lines)], checks, {"Change along training": figure})


def _measured(arrays: Arrays, place: tuple[int, int, int]) -> Measured:
    """Mean over the tasks with its standard error."""
    errors = arrays["accuracy_stderr"][place]
    return Measured(
        value=float(arrays["accuracy"][place].mean()), stderr=float(np.sqrt((errors**2).sum()) / len(errors))
    )


def _by_size(arrays: Arrays, size: int) -> float:
    return float(arrays["normalized"][arrays["members"].sum(1) == size].mean())


def _last_error(arrays: Arrays) -> float:
    """Standard error of the normalised accuracy of all tasks merged."""
    errors = arrays["accuracy_stderr"][-1] / arrays["single"]
    return float(np.sqrt((errors**2).sum()) / len(errors))
