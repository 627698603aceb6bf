"""The figures of a merging study, drawn from its results document alone, in the theme that is drawn in now.

Methods and recipes differ by colour and by marker.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from taskarith_fast.analysis.figures_maps import cosine_table
from taskarith_fast.analysis.figures_theme import COLOURS, MARKERS, Themed, axes_of, in_both, theme
from taskarith_fast.analysis.results import Results, Row

_COLOURS = {
    "average": COLOURS[5],
    "task_arithmetic": COLOURS[1],
    "post_hoc": COLOURS[3],
    "ties": COLOURS[2],
    "cart": COLOURS[0],
}
_MARKERS = {"average": "s", "task_arithmetic": "o", "post_hoc": "v", "ties": "^", "cart": "D"}
_CHOSEN = COLOURS[4]


def accuracy_figure(results: Results, recipe: str) -> Figure:
    """Mean test accuracy of every row of one recipe with its standard error; merged models in colour."""
    rows = [row for row in results.rows if row.recipe in ("", recipe)]
    figure, axes = axes_of(height=0.9 + 0.34 * len(rows))
    for place, row in enumerate(rows):
        _accuracy_dot(axes, place, row)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    low = min(row.mean.value - row.mean.stderr for row in rows)
    high = max(row.mean.value + row.mean.stderr for row in rows)
    pad = 0.12 * (high - low) + 0.002
    axes.set_xlim(100 * (low - pad), 100 * (high + 2.2 * pad))
    axes.set_xlabel("Mean test accuracy (%) ± one standard error")
    axes.grid(axis="x", linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    return figure


def lambda_figure(results: Results, recipe: str) -> Figure:
    """Validation score against the scale, one line a method; the chosen scales are marked."""
    figure, axes = axes_of()
    for curve in (c for c in results.curves.scale if c.recipe == recipe):
        score, error = 100 * np.array(curve.val_normalized), 100 * np.array(curve.val_stderr)
        colour, marker = _COLOURS.get(curve.method, theme().ink), _MARKERS.get(curve.method, "o")
        axes.fill_between(curve.scale, score - error, score + error, color=colour, alpha=0.14, linewidth=0)
        axes.plot(curve.scale, score, color=colour, marker=marker, markersize=3.5, label=curve.label)
        at = np.interp(curve.chosen, curve.scale, score)
        axes.plot(curve.chosen, at, linestyle="none", marker=marker, markersize=10, markerfacecolor=theme().page,
                  markeredgecolor=colour, markeredgewidth=2.2, zorder=5)  # fmt: skip
    axes.plot([], [], linestyle="none", marker="o", markersize=9, markerfacecolor=theme().page,
              markeredgecolor=theme().muted, markeredgewidth=2, label="chosen on validation")  # fmt: skip
    axes.set_xlabel("Scale λ (0 is the pre-trained encoder with its linear probes)")
    axes.set_ylabel("Validation accuracy (% of the\nfine-tuned encoders'), mean over tasks")
    axes.grid(linewidth=0.7)
    axes.margins(x=0.02)
    axes.legend(loc="best")
    return figure


def cosine_figure(results: Results, recipe: str) -> Figure:
    """Cosines between the task vectors; the diagonal is 1 by definition and left grey."""
    cosine = next(c for c in results.cosine if c.recipe == recipe)
    return cosine_table(np.array(cosine.matrix), cosine.names)


def cart_grid_figure(results: Results, recipe: str) -> Figure:
    """CART's validation score against the rank it keeps, one line a scale; the chosen points are marked."""
    curve = next(c for c in results.curves.cart_rank if c.recipe == recipe)
    figure, axes = axes_of(height=3.8)
    percent = 100 * np.array(curve.rank_ratio)
    scores = 100 * np.array(curve.val_normalized)  # [R, S]
    steps = theme().sequence
    for s, scale in enumerate(curve.scale):
        colour = steps[round(s * (len(steps) - 1) / max(len(curve.scale) - 1, 1))]
        axes.plot(percent, scores[:, s], color=colour, marker="o", markersize=4, label=f"scale {scale:g}")
    for ratio, scale in zip(curve.chosen_rank_ratio, curve.chosen_scale, strict=True):
        best = scores[curve.rank_ratio.index(ratio), curve.scale.index(scale)]
        axes.plot(100 * ratio, best, linestyle="none", marker="D", markersize=10, markerfacecolor=theme().page,
                  markeredgecolor=_CHOSEN, markeredgewidth=2.2, zorder=5)  # fmt: skip
    axes.set_ylabel("Validation accuracy (% of the\nfine-tuned encoders'), mean over tasks")
    axes.legend(loc="best", fontsize=9.5)
    _rank_axis(axes, percent)
    return figure


def rank_figure(results: Results, recipe: str) -> Figure:
    """CART's test accuracy against the rank it keeps, at the scale that validation chose."""
    curve = next(c for c in results.curves.cart_rank if c.recipe == recipe)
    figure, axes = axes_of(height=3.8)
    percent = 100 * np.array(curve.rank_ratio)
    test, error = 100 * np.array(curve.test_mean), 100 * np.array(curve.test_stderr)
    axes.errorbar(percent, test, yerr=error, color=_COLOURS["cart"], marker="D", markersize=6, capsize=3,
                  elinewidth=1.2, label="CART, chosen scale")  # fmt: skip
    for method, style in (("average", "--"), ("probe", ":")):
        row = results.row(method, recipe)
        if row is not None:
            axes.axhline(100 * row.mean.value, color=theme().muted, linestyle=style, linewidth=1.3, label=row.label)
    axes.set_ylabel("Test accuracy (%), mean over tasks")
    axes.legend(loc="best", fontsize=9.5)
    _rank_axis(axes, percent)
    return figure


def linearity_figure(results: Results) -> Figure:
    """Accuracy after post-hoc linearization against the fine-tuned encoder's, a point a task, a marker a recipe."""
    figure, axes = axes_of(5.4, height=4.6)
    points = [m for line in results.linearity for m in (line.ordinary, line.linearized)]
    low, high = (100 * pick(m.value for m in points) for pick in (min, max))
    pad = 0.06 * (high - low) + 1
    axes.plot([low - pad, high + pad], [low - pad, high + pad], color=theme().muted, linewidth=1, linestyle="--")
    for recipe, (colour, marker) in _styles(results):
        lines = [line for line in results.linearity if line.recipe == recipe]
        if lines:
            x, y = ([100 * getattr(line, name).value for line in lines] for name in ("ordinary", "linearized"))
            dx, dy = ([100 * getattr(line, name).stderr for line in lines] for name in ("ordinary", "linearized"))
            axes.errorbar(x, y, xerr=dx, yerr=dy, color=colour, marker=marker, markersize=6, linestyle="none",
                          elinewidth=0.7, label=recipe)  # fmt: skip
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlabel("Test accuracy of the fine-tuned encoder (%)")
    axes.set_ylabel("... and of its linearization (%)")
    axes.grid(linewidth=0.7)
    axes.legend(loc="best", title="recipe")
    return figure


def sensitivity_figure(results: Results) -> Figure:
    """Relative change of per-image gradients over the steps of fine-tuning, one line a recipe."""
    figure, axes = axes_of()
    for recipe, (colour, marker) in _styles(results):
        for curve in (c for c in results.sensitivity if c.recipe == recipe):
            axes.plot(curve.step, curve.change, color=colour, marker=marker, markersize=5, label=recipe)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Optimizer step")
    axes.set_ylabel("Change of gradients,\nrelative to those at the start")
    axes.grid(linewidth=0.7)
    axes.legend(loc="best", title="recipe")
    return figure


def samples_figure(names: Sequence[str], images: Sequence[np.ndarray]) -> Figure:
    """A strip of images for each task.

    Args:
        names: Task names.
        images: One uint8 array [n, H, W, 3] a task, the same n for all.
    """
    count = max((len(strip) for strip in images), default=1)
    width = 1.3 + 0.62 * count
    figure = Figure(figsize=(width, 0.66 * len(names)))
    grid = figure.add_gridspec(len(names), 1, left=1.3 / width, right=1, top=1, bottom=0, hspace=0.08)
    for place, (name, strip) in enumerate(zip(names, images, strict=True)):
        axes = figure.add_subplot(grid[place])
        edge = max(1, strip.shape[1] // 16)
        between = np.full((strip.shape[1], edge, 3), [int(255 * part) for part in to_rgb(theme().page)], dtype=np.uint8)
        row = [part for image in strip for part in (image, between)]
        axes.imshow(np.concatenate(row, axis=1), interpolation="nearest")
        axes.set_axis_off()
        axes.text(-0.02, 0.5, name, ha="right", va="center", transform=axes.transAxes)
    return figure


def all_figures(results: Results) -> dict[str, Themed]:
    """Every figure that the results allow: name such as ``lambda-full`` -> PNG for light and for dark pages."""
    figures: dict[str, Themed] = {}
    for recipe in results.recipes:
        drawn = [("accuracy", accuracy_figure, any(row.recipe == recipe for row in results.rows))]
        drawn += [("lambda", lambda_figure, any(c.recipe == recipe for c in results.curves.scale))]
        drawn += [("cosine", cosine_figure, any(c.recipe == recipe for c in results.cosine))]
        ranked = any(c.recipe == recipe for c in results.curves.cart_rank)
        drawn += [("cart-grid", cart_grid_figure, ranked), ("rank", rank_figure, ranked)]
        for name, draw, possible in drawn:
            if possible:
                figures[f"{name}-{recipe}"] = in_both(partial(draw, results, recipe))
    if results.linearity:
        figures["linearity"] = in_both(partial(linearity_figure, results))
    if results.sensitivity:
        figures["sensitivity"] = in_both(partial(sensitivity_figure, results))
    return figures


def _styles(results: Results) -> list[tuple[str, tuple[str, str]]]:
    """Recipes with their colours and markers."""
    looks = itertools.cycle(zip(COLOURS[:7], MARKERS, strict=False))
    return list(zip(results.recipes, looks, strict=False))


def _accuracy_dot(axes: Axes, place: int, row: Row) -> None:
    colour = _COLOURS.get(row.method, theme().ink) if row.merged else COLOURS[7]
    value, error = 100 * row.mean.value, 100 * row.mean.stderr
    axes.errorbar(value, place, xerr=error, color=colour, marker=_MARKERS.get(row.method, "o"), markersize=7,
                  capsize=3, elinewidth=1.6)  # fmt: skip
    axes.annotate(f"{value:.1f}", (value + error, place), xytext=(7, 0), textcoords="offset points",
                  va="center", fontsize=9, color=theme().ink)  # fmt: skip


def _rank_axis(axes: Axes, percent: np.ndarray) -> None:
    axes.set_xlabel("Rank kept (% of full rank)")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([float(p) for p in percent]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.grid(linewidth=0.7)
