"""Protocols of the figures that are maps: disentanglement, localization, masks, pruning, landscapes, cosines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from taskarith_fast.analysis.figures_theme import Themed
from taskarith_fast.analysis.outcome import Check, Outcome, Table
from taskarith_fast.analysis.results import Measured
from taskarith_fast.loops import statistics
from taskarith_fast.loops.reproduce.bench import Arrays, Bench, drawn
from taskarith_fast.loops.reproduce.published import Published
from taskarith_fast.loops.reproduce.study import in_points, split_by_task
from taskarith_fast.loops.statistics import Correct


def disentanglement(
    bench: Bench, published: Published, *, recipes: Sequence[str], reach: float, points: int,
    less: Sequence[tuple[str, str]], distances: Sequence[str] = ("prediction",), pair: tuple[int, int] = (0, 1),
) -> Outcome:  # fmt: skip
    """The error of each recipe on a grid; `less` are pairs of recipes of which the first has the lower error."""
    if bench.quick:
        points = 2 * math.ceil(reach) + 1  # whole scales: nine points lie in [-1, 1]²
    tasks = [bench.tasks[t] for t in pair]
    figures: dict[str, Themed] = {}
    checks, lines = [], []
    for distance in distances:
        found: dict[str, Arrays] = {}
        for recipe in recipes:
            words: dict[str, Any] = {
                "low": -reach,
                "high": reach,
                "points": points,
                "distance": distance,
                "samples": 2048,
            }
            found[recipe] = bench.analyze("disentanglement", recipe, tasks=tasks, **words)
            caption = f"{recipe}, {distance}: disentanglement error of {tasks[0]} and {tasks[1]}; square: [-1, 1]²"
            figures[caption] = drawn("disentanglement", found[recipe])
        near = {recipe: _error_by_image(arrays, inside=True) for recipe, arrays in found.items()}
        far = {recipe: _error_by_image(arrays, inside=False) for recipe, arrays in found.items()}
        for recipe in recipes:
            means = (_sum(statistics.accuracies(errors[recipe])) for errors in (near, far))
            lines.append([recipe, distance, *(f"{mean.value:.3f} ± {mean.stderr:.3f}" for mean in means)])
        for one, other in less:
            checks.append(_lower(f"{one} is more disentangled than {other} ({distance})", near[one], near[other]))
        if distance == "prediction" and not less:
            statement = "the error is lower inside [-1, 1]² than over the whole grid"
            checks.append(_lower(statement, near[recipes[0]], far[recipes[0]]))
    note = f"{points} x {points} points on [-{reach:g}, {reach:g}]². ± is one standard error over the test images."
    columns = ["recipe", "distance", "mean error inside [-1, 1]²", "mean error over the grid"]
    return Outcome([Table("Disentanglement error", columns, lines, note)], checks, figures)


def localization(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Accuracy of each task vector alone on all tasks, relative to the base; 1 is ideal off the diagonal."""
    found = {recipe: bench.analyze("localization", recipe) for recipe in recipes}
    away = {recipe: _off_diagonal(np.abs(arrays["ratio"] - 1)).mean() for recipe, arrays in found.items()}
    lines = [[recipe, f"{value:.3f}"] for recipe, value in away.items()]
    error = {recipe: _disturbance_error(arrays, found["full"]) for recipe, arrays in found.items()}
    checks = [
        Check(f"{recipe} disturbs other tasks less than full fine-tuning", float(away["full"] - away[recipe]),
              error[recipe], "of the base's accuracy")
        for recipe in recipes if recipe != "full"
    ]  # fmt: skip
    figures = {f"{recipe}: accuracy relative to the base": drawn("localization", a) for recipe, a in found.items()}
    return Outcome([Table("Mean |ratio - 1| on other tasks", ["recipe", "mean"], lines)], checks, figures)


def insensitive(bench: Bench, published: Published, *, kind: str) -> Outcome:
    """Prune or perturb the tenth of the weights that one task is least sensitive to."""
    arrays = bench.analyze(kind, "talos", masks=True, changes={"mask_rounds": 1})
    before = split_by_task(arrays["correct_before"], arrays)
    after = statistics.mean_over_seeds(split_by_task(correct, arrays) for correct in arrays["correct"])
    kept = statistics.mean_of(statistics.ratios(after, before))  # the mean over the masks, image by image
    verb = {"prune": "pruning", "perturb": "perturbing"}[kind]
    checks = [
        in_points(f"{verb} them leaves at least 95 % of the accuracy on average", kept, beyond=95),
        Check("and at least 90 % for every pair of tasks", 100 * (float(np.nanmin(arrays["ratio"])) - 0.9), None),
    ]
    caption = f"Accuracy after {verb} relative to that before; rows: task the weights were chosen for"
    return Outcome([], checks, {caption: drawn(kind, arrays)})


def mask_shares(bench: Bench, published: Published, *, recipe: str) -> Outcome:
    """Share of each layer that a recipe's masks train."""
    arrays = bench.analyze("mask_share", recipe, masks=True)
    return Outcome(figures={f"{recipe}: share of the entries of each layer": drawn("mask_share", arrays)})


def mask_overlap(bench: Bench, published: Published) -> Outcome:
    """Intersection over union of the tasks' masks."""
    arrays = bench.analyze("mask_iou", "talos", masks=True)
    least = float(_off_diagonal(arrays["iou"]).min())
    checks = [Check("every two masks overlap by more than 0.7 (ViT-B/32)", least - 0.7, None, "")]
    return Outcome([], checks, {"Mask IoU": drawn("mask_iou", arrays)})


def cosines(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Cosine similarity between task vectors, by recipe."""
    found = {recipe: bench.analyze("cosine", recipe) for recipe in recipes}
    mean = {recipe: float(np.abs(_off_diagonal(arrays["cosine"])).mean()) for recipe, arrays in found.items()}
    lines = [[recipe, f"{value:.4f}"] for recipe, value in mean.items()]
    checks = [Check(f"task vectors of {recipes[-1]} are closer to orthogonal than those of {recipes[0]}",
                    mean[recipes[0]] - mean[recipes[-1]], None, "")]  # fmt: skip
    figures = {f"{recipe}: cosines": drawn("cosine", arrays) for recipe, arrays in found.items()}
    return Outcome([Table("Mean |cosine| of two tasks", ["recipe", "mean"], lines)], checks, figures)


def landscape(bench: Bench, published: Published) -> Outcome:
    """The loss on the plane of the models, with CART's way along the rank."""
    words: dict[str, Any] = {"points": 8, "samples": 64} if bench.quick else {"points": 20, "samples": 512}
    arrays = bench.analyze("landscape", "full", rank_ratios=[0.0, 0.04, 0.08, 0.16, 0.32, 1.0], **words)
    losses = arrays["rank_loss"].sum(1)
    lines = [[f"{100 * ratio:g} %", f"{value:.3f}"] for ratio, value in zip(arrays["rank_ratio"], losses, strict=True)]
    inner = int(np.argmin(np.abs(arrays["rank_ratio"] - 0.08)))
    average, kept = (split_by_task(arrays["rank_losses"][r], arrays) for r in (0, inner))
    statement = "the way along the rank passes a lower loss at 8 % than at the average"
    checks = [_lower(statement, kept, average, "nats")]
    title = "CART's loss along the rank, summed over tasks (test images)"
    figures = {"Loss, summed over the tasks, and the ways through it": drawn("landscape", arrays)}
    return Outcome([Table(title, ["rank kept", "loss"], lines)], checks, figures)


def _error_by_image(arrays: Arrays, *, inside: bool) -> Correct:
    """Mean error of each image over the grid, or its points in [-1, 1]^2; the points next to 0 where there are none."""
    one, two = (np.abs(arrays[name]) for name in ("scales_1", "scales_2"))
    rows, columns = (s <= max(1.0 if inside else np.inf, float(s.min())) for s in (one, two))
    distances = (arrays[name][rows][:, columns].mean((0, 1), dtype=np.float64) for name in ("distance_1", "distance_2"))
    return {task: torch.from_numpy(d) for task, d in zip(arrays["tasks"].tolist(), distances, strict=True)}


def _lower(statement: str, errors: Correct, others: Correct, unit: str = "") -> Check:
    gap = _sum(statistics.differences(others, errors))
    return Check(statement, gap.value, gap.stderr, unit)


def _sum(terms: Mapping[str, Measured]) -> Measured:
    mean = statistics.mean_of(terms)
    return Measured(value=len(terms) * mean.value, stderr=len(terms) * mean.stderr)


def _disturbance_error(arrays: Arrays, others: Arrays) -> float:
    """Standard error of the difference of the means of |ratio - 1| off the diagonal, paired by image.

    Near a ratio that is not 1, |ratio - 1| is linear in it: task by task it is a ratio of signed sums of models.
    """
    ours, theirs = (_signed(a) for a in (arrays, others))
    before = split_by_task(arrays["correct_before"], arrays)
    return statistics.mean_of(statistics.ratio_differences(ours, before, theirs, before)).stderr


def _signed(arrays: Arrays) -> Correct:
    """Mean over the other tasks' models of correctness with the sign of ratio - 1, by task."""
    signs = np.sign(arrays["ratio"] - 1) * ~np.eye(len(arrays["ratio"]), dtype=bool)
    by_image = np.repeat(signs, arrays["images"], axis=1) * arrays["correct"]
    return split_by_task(by_image.sum(0) / (len(signs) - 1), arrays)


def _off_diagonal(values: np.ndarray) -> np.ndarray:
    found = values[~np.eye(len(values), dtype=bool)]
    return found[np.isfinite(found)]
