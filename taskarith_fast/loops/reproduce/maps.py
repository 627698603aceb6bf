"""Protocols of the figures that are maps: disentanglement, localization, masks, pruning, landscapes, cosines."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from taskarith_fast.analysis.outcome import Check, Outcome, Table
from taskarith_fast.loops.reproduce.bench import Arrays, Bench, Themed, drawn
from taskarith_fast.loops.reproduce.published import Published

_QUICK_POINTS = 5


def disentanglement(
    bench: Bench, published: Published, *, recipes: Sequence[str], reach: float, points: int,
    less: Sequence[tuple[str, str]], distances: Sequence[str] = ("prediction",), pair: tuple[int, int] = (0, 1),
) -> Outcome:  # fmt: skip
    """The error of each recipe on a grid; `less` are pairs of recipes of which the first has the lower error."""
    if bench.setting.config.preset == "quick":
        points = _QUICK_POINTS
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
        images = [min(2048, len(bench.setting.tasks[task].splits["test"])) for task in tasks]
        inside = {recipe: _inside(arrays) for recipe, arrays in found.items()}
        for recipe, arrays in found.items():
            mean = f"{arrays['error'].mean():.3f}"
            lines.append([recipe, distance, f"{inside[recipe].sum():.3f}", mean])
        for one, other in less:
            error = None
            if distance == "prediction":
                error = sqrt(sum(_bound(inside[r], images) for r in (one, other)))
            gap = float(inside[other].sum() - inside[one].sum())
            checks.append(Check(f"{one} is more disentangled than {other} ({distance})", gap, error, ""))
        if distance == "prediction" and not less:
            arrays = found[recipes[0]]
            outside = float(arrays["error"].mean() - inside[recipes[0]].sum())
            checks.append(Check("the error is lower inside [-1, 1]² than over the whole grid", outside,
                                sqrt(_bound(inside[recipes[0]], images)), ""))  # fmt: skip
    note = (
        f"{points} x {points} points on [-{reach:g}, {reach:g}]². Standard errors of differences are upper bounds: a "
        "mean in [0, 1] with value e over N images has a variance of at most e (1 - e) / N."
    )
    columns = ["recipe", "distance", "mean error inside [-1, 1]²", "mean error over the grid"]
    return Outcome([Table("Disentanglement error", columns, lines, note)], checks, figures)


def localization(bench: Bench, published: Published, *, recipes: Sequence[str]) -> Outcome:
    """Accuracy of each task vector alone on all tasks, relative to the base; 1 is ideal off the diagonal."""
    found = {recipe: bench.analyze("localization", recipe) for recipe in recipes}
    away = {recipe: _off_diagonal(np.abs(arrays["ratio"] - 1)) for recipe, arrays in found.items()}
    lines = [[recipe, f"{value.mean():.3f}"] for recipe, value in away.items()]
    checks = [
        Check(f"{recipe} disturbs other tasks less than full fine-tuning",
              float(away["full"].mean() - away[recipe].mean()), None, "of the base's accuracy")
        for recipe in recipes if recipe != "full"
    ]  # fmt: skip
    figures = {f"{recipe}: accuracy relative to the base": drawn("localization", a) for recipe, a in found.items()}
    return Outcome([Table("Mean |ratio - 1| on other tasks", ["recipe", "mean"], lines)], checks, figures)


def insensitive(bench: Bench, published: Published, *, kind: str) -> Outcome:
    """Prune or perturb the tenth of the weights that one task is least sensitive to."""
    arrays = bench.analyze(kind, "talos", masks=True, changes={"mask_rounds": 1})
    base = arrays["accuracy"] / np.where(arrays["ratio"] > 0, arrays["ratio"], np.nan)
    error = float(np.sqrt(np.nansum((arrays["accuracy_stderr"] / base) ** 2)) / base.size)
    verb = {"prune": "pruning", "perturb": "perturbing"}[kind]
    mean = float(np.nanmean(arrays["ratio"]))
    checks = [
        Check(f"{verb} them leaves at least 95 % of the accuracy on average", 100 * (mean - 0.95), 100 * error),
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
    quick = bench.setting.config.preset == "quick"
    words: dict[str, Any] = {"points": 8 if quick else 20, "samples": 64 if quick else 512}
    arrays = bench.analyze("landscape", "full", rank_ratios=[0.0, 0.04, 0.08, 0.16, 0.32, 1.0], **words)
    losses = arrays["rank_loss"].sum(1)
    lines = [[f"{100 * ratio:g} %", f"{value:.3f}"] for ratio, value in zip(arrays["rank_ratio"], losses, strict=True)]
    inner = int(np.argmin(np.abs(arrays["rank_ratio"] - 0.08)))
    checks = [
        Check("the way along the rank passes a lower loss at 8 % than at the average", float(losses[0] - losses[inner]),
              None, "nats"),
    ]  # fmt: skip
    title = "CART's loss along the rank, summed over tasks (test images)"
    figures = {"Loss, summed over the tasks, and the ways through it": drawn("landscape", arrays)}
    return Outcome([Table(title, ["rank kept", "loss"], lines)], checks, figures)


def _inside(arrays: Arrays) -> np.ndarray:
    """Mean error of each task over the points in [-1, 1]^2, [2]; the points next to 0 where there are none."""
    one, two = (np.abs(arrays[name]) for name in ("scales_1", "scales_2"))
    rows, columns = (s <= max(1.0, float(s.min())) for s in (one, two))
    return arrays["by_task"][:, rows][:, :, columns].mean((1, 2))


def _bound(means: np.ndarray, images: Sequence[int]) -> float:
    """Largest variance of a sum of means of values in [0, 1]."""
    return float(sum(e * (1 - e) / n for e, n in zip(means, images, strict=True)))


def _off_diagonal(values: np.ndarray) -> np.ndarray:
    found = values[~np.eye(len(values), dtype=bool)]
    return found[np.isfinite(found)]
