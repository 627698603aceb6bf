"""Protocols of the figures that are curves: along the rank, the scale, the density, the number of tasks, the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from taskarith_fast.analysis.figures import linearity_figure, sensitivity_figure
from taskarith_fast.analysis.figures_theme import in_both
from taskarith_fast.analysis.outcome import Check, Outcome, Table, percent
from taskarith_fast.analysis.results import Measured
from taskarith_fast.loops import statistics
from taskarith_fast.loops.reproduce.bench import Arrays, Bench, drawn
from taskarith_fast.loops.reproduce.published import Published
from taskarith_fast.loops.reproduce.study import in_points, split_by_task
from taskarith_fast.loops.statistics import Correct

_RANKS = [0.0, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0]
_RANKS_QUICK = [0.0, 0.04, 0.08, 0.32, 1.0]
_BEST = 0.08
_RANK_CAPTION = (
    "Mean accuracy along the rank. Bands: one standard error of each point; points share their images, so differences "
    "between them are more certain than the bands."
)
DENSITIES = (0.01, 0.05, 0.1, 0.3, 0.5, 1.0)


def ranks(
    bench: Bench, published: Published, *, orders: Sequence[str] = ("largest",), origins: Sequence[str] = ("average",),
    kind: str = "rank_sweep", by_task: bool = False,
) -> Outcome:  # fmt: skip
    """Accuracy along the rank, each statement at the paper's 8 %: no rank is chosen on test images."""
    ratios = _RANKS_QUICK if bench.quick else _RANKS
    words: dict[str, Any] = {"rank_ratios": ratios, "orders": list(orders), "origins": list(origins)}
    arrays = bench.analyze(kind, "full", **words)
    best, full = ratios.index(_BEST), len(ratios) - 1

    def difference(statement: str, one: tuple[int, int, int], other: tuple[int, int, int]) -> Check:
        a, b = (split_by_task(arrays["correct"][place], arrays) for place in (one, other))
        return in_points(statement, statistics.mean_of(statistics.differences(a, b)))

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
        for i, r in enumerate(ratios)
    ]
    note = "Scale 1 around the average, 0.3 (routed: 1) around the base."
    tables = [Table("Mean test accuracy (%)", columns, lines, note)]
    if by_task:
        values = arrays["accuracy"][0, 0]
        rows = [[f"{100 * r:g} %", *(f"{100 * v:.1f}" for v in values[i])] for i, r in enumerate(ratios)]
        tables.append(Table("By task (%)", ["rank kept", *bench.tasks], rows))
    return Outcome(tables, checks, {_RANK_CAPTION: drawn(kind, arrays)})


def task_counts(bench: Bench, published: Published, *, methods: dict[str, dict[str, Any]]) -> Outcome:
    """Accuracy of merges of all subsets of the tasks; `methods` are parameters with their scales."""
    found = {m: _counted(bench, m, words) for m, words in methods.items()}
    sizes = range(1, len(bench.tasks) + 1)
    normalized = {m: [_by_size(arrays, size) for size in sizes] for m, arrays in found.items()}
    lines = [[str(size), *(f"{100 * normalized[m][i]:.1f}" for m in methods)] for i, size in enumerate(sizes)]
    names = list(methods)
    if len(names) > 1:
        last, first = (_of_all(found[name]) for name in (names[-1], names[0]))
        above = statistics.ratio_differences(*last, *first)
        words = f"{names[-1]} is above {names[0]} with all {len(bench.tasks)} tasks"
    else:
        above = statistics.ratio_differences(*_of_each(found[names[0]]), *_of_all(found[names[0]]))
        words = "normalised accuracy falls as tasks are added, from one to all"
    checks = [in_points(words, statistics.mean_of(above))]
    figures = {f"{m}: a dot a subset": drawn("task_count", arrays) for m, arrays in found.items()}
    table = Table("Normalised accuracy (%), mean over subsets", ["tasks merged", *names], lines)
    return Outcome([table], checks, figures)


def scales(bench: Bench, published: Published) -> Outcome:
    """Normalised accuracy along lambda."""
    arrays = bench.lambda_curve("full")
    curve, at = arrays["normalized"], arrays["scales"]
    lines = [[f"{s:g}", f"{100 * v:.1f}"] for s, v in zip(at, curve, strict=True)]
    added = bench.study("full").need(("full", "task_arithmetic"))
    checks = [in_points("the scale that validation chooses is above lambda = 0, which is probing", added.over_probe)]
    table = Table("Normalised test accuracy (%)", ["lambda", "mean over tasks"], lines)
    return Outcome([table], checks, {"Accuracy along lambda": drawn("lambda_curve", arrays)})


def along_scales(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """The scales of `scales`, and the normalised accuracies there."""
    arrays = bench.lambda_curve("full")
    return arrays["scales"], arrays["normalized"]


def along_counts(bench: Bench, *, methods: dict[str, dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of tasks, and normalised accuracies of the first method's merges."""
    method, words = next(iter(methods.items()))
    arrays = _counted(bench, method, words)
    sizes = range(1, len(bench.tasks) + 1)
    return np.array(sizes), np.array([_by_size(arrays, size) for size in sizes])


def densities(bench: Bench, published: Published) -> Outcome:
    """TaLoS at several densities."""
    lines, found = [], {}
    for density in DENSITIES:
        found[density] = bench.study("talos", mask_density=density)
        single, added = (found[density].need(("talos", m)) for m in ("individual", "task_arithmetic"))
        lines.append([f"{100 * (1 - density):g} %", percent(single.mean), percent(added.mean),
                      percent(added.normalized_mean)])  # fmt: skip
    table = Table("Accuracy (%)", ["sparsity", "single-task", "abs", "norm"], lines)
    checks = []
    place = ("talos", "task_arithmetic")
    for other in (0.01, 1.0):
        words = f"90 % sparsity is above {100 * (1 - other):g} % in normalised accuracy"
        checks.append(in_points(words, found[0.1].above(place, place, "norm", found[other])))
    return Outcome([table], checks)


def single_tasks(
    bench: Bench, published: Published, *, recipes: Sequence[str], above: Sequence[tuple[str, str]]
) -> Outcome:
    """Single-task accuracy of every recipe; `above` are pairs of which the first is said to be higher."""
    need = ["full", *(r for r in recipes if r != "full")] if "lota" in recipes else list(recipes)
    study = bench.study(*need)
    rows = {recipe: study.need((recipe, "individual")) for recipe in recipes}
    lines = [[r, percent(row.mean), *(percent(row.accuracy[t]) for t in bench.tasks)] for r, row in rows.items()]
    checks = [
        in_points(f"{one} is above {other}", study.above((one, "individual"), (other, "individual")))
        for one, other in above
    ]
    arrays = {
        "accuracy": np.array([[row.accuracy[t].value for t in bench.tasks] for row in rows.values()]),
        "tasks": np.array(bench.tasks), "recipes": np.array(list(rows)),
    }  # fmt: skip
    table = Table("Single-task accuracy (%)", ["recipe", "mean", *bench.tasks], lines)
    return Outcome([table], checks, {"Single-task accuracy": drawn("radar", arrays)})


def post_hoc(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Fine-tuned encoders against their linearization."""
    study = bench.study(*recipes, post_hoc=True)
    lines = [[m.recipe, m.task, percent(m.ordinary), percent(m.linearized), percent(m.difference)]
             for m in study.results.linearity]  # fmt: skip
    loss = {}
    for recipe in ("full", "talos"):
        before, after = (study.right[recipe, method] for method in ("individual", "post_hoc_own"))
        loss[recipe] = {task: before[task] - after[task] for task in before}
    saved = statistics.mean_of(statistics.differences(loss["full"], loss["talos"]))
    checks = [in_points("linearization costs talos less than full fine-tuning", saved)]
    columns = ["recipe", "task", "fine-tuned", "linearized", "difference"]
    figure = in_both(lambda: linearity_figure(study.results))
    figures = {"A point a task; on the diagonal linearization loses nothing": figure}
    return Outcome([Table("Accuracy (%)", columns, lines)], checks, figures)


def sensitivity(bench: Bench, published: Published) -> Outcome:
    """How far per-image gradients move in training."""
    study = bench.study("full", "talos", sensitivity=("full", "talos"))
    curves = {curve.recipe: curve for curve in study.results.sensitivity}
    lines = [[r, *(f"{c:.3f}" for c in curve.change)] for r, curve in curves.items()]
    steps = [f"step {s}" for s in next(iter(curves.values())).step]
    checks = [Check("gradients move less under talos than under full fine-tuning",
                    curves["full"].change[-1] - curves["talos"].change[-1], None, "relative")]  # fmt: skip
    figure = in_both(lambda: sensitivity_figure(study.results))
    title = f"Relative change of per-image gradients, {next(iter(curves.values())).task}"
    return Outcome([Table(title, ["recipe", *steps], lines)], checks, {"Change along training": figure})


def _counted(bench: Bench, method: str, words: dict[str, Any]) -> Arrays:
    """Merges of all subsets; in quick form every third scale."""
    scales = words["scales"][::3] if bench.quick else words["scales"]
    return bench.analyze("task_count", "full", method=method, **words | {"scales": scales})


def _measured(arrays: Arrays, place: tuple[int, int, int]) -> Measured:
    """Mean over the tasks with its standard error."""
    return statistics.mean_of(statistics.accuracies(split_by_task(arrays["correct"][place], arrays)))


def _by_size(arrays: Arrays, size: int) -> float:
    return float(arrays["normalized"][arrays["members"].sum(1) == size].mean())


def _of_all(arrays: Arrays) -> tuple[Correct, Correct]:
    """Which images the merge of all tasks has right, and which each task's own model."""
    return split_by_task(arrays["correct"][-1], arrays), split_by_task(arrays["correct_single"], arrays)


def _of_each(arrays: Arrays) -> tuple[Correct, Correct]:
    """The same for each task merged alone, which no other task disturbs."""
    alone = arrays["correct"][arrays["members"].sum(1) == 1].any(0)
    return split_by_task(alone, arrays), split_by_task(arrays["correct_single"], arrays)
