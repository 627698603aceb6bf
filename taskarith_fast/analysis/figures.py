"""The figures of a merging study, drawn from its results document alone; each returns a matplotlib Figure.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; methods also differ by marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from taskarith_fast.analysis.results import Results, Row

INK, MUTED, GRID = "#1b1b1b", "#666666", "#dddddd"
COLOURS = {
    "average": "#56b4e9",
    "task_arithmetic": "#d98500",
    "post_hoc": "#cc79a7",
    "ties": "#009e73",
    "cart": "#0072b2",
}
MARKERS = {"average": "s", "task_arithmetic": "o", "post_hoc": "v", "ties": "^", "cart": "D"}
_RECIPE_STYLES = [("#d98500", "o"), ("#009e73", "s"), ("#0072b2", "D"), ("#cc79a7", "^"), ("#56b4e9", "v")]
_SEQUENCE = ("#b9d6ea", "#8bbbdd", "#5a9ccb", "#2f7ab5", "#135a97", "#083a6b")

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@rc_context(STYLE)
def png(figure: Figure) -> bytes:
    """The figure as a PNG of 200 dots an inch on white."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


@rc_context(STYLE)
def accuracy_figure(results: Results, recipe: str) -> Figure:
    """Mean test accuracy of every row of one recipe with its standard error; merged models in colour."""
    rows = [row for row in results.rows if row.recipe in ("", recipe)]
    figure, axes = _axes(height=0.9 + 0.34 * len(rows))
    for place, row in enumerate(rows):
        _accuracy_dot(axes, place, row)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    low = min(row.mean.value - row.mean.stderr for row in rows)
    high = max(row.mean.value + row.mean.stderr for row in rows)
    pad = 0.12 * (high - low) + 0.002
    axes.set_xlim(100 * (low - pad), 100 * (high + 2.2 * pad))
    axes.set_xlabel("Test accuracy, mean over tasks (%), ± one standard error")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    return figure


@rc_context(STYLE)
def lambda_figure(results: Results, recipe: str) -> Figure:
    """Validation score against the scale, one line a method; the chosen scales are marked."""
    figure, axes = _axes()
    for curve in (c for c in results.curves.scale if c.recipe == recipe):
        score, error = 100 * np.array(curve.val_normalized), 100 * np.array(curve.val_stderr)
        colour, marker = COLOURS.get(curve.method, INK), MARKERS.get(curve.method, "o")
        axes.fill_between(curve.scale, score - error, score + error, color=colour, alpha=0.14, linewidth=0)
        axes.plot(curve.scale, score, color=colour, marker=marker, markersize=3.5, label=curve.label)
        at = np.interp(curve.chosen, curve.scale, score)
        axes.plot(curve.chosen, at, linestyle="none", marker=marker, markersize=10, markerfacecolor="white",
                  markeredgecolor=colour, markeredgewidth=2.2, zorder=5)  # fmt: skip
    axes.plot([], [], linestyle="none", marker="o", markersize=9, markerfacecolor="white",
              markeredgecolor=MUTED, markeredgewidth=2, label="chosen on validation")  # fmt: skip
    axes.set_xlabel("Scale λ (0 is the pre-trained encoder with its linear probes)")
    axes.set_ylabel("Validation accuracy (% of the\nfine-tuned encoders'), mean over tasks")
    axes.grid(color=GRID, linewidth=0.7)
    axes.margins(x=0.02)
    axes.legend(loc="best")
    return figure


@rc_context(STYLE)
def cosine_figure(results: Results, recipe: str) -> Figure:
    """Cosines between the task vectors; the diagonal is 1 by definition and left grey."""
    cosine = next(c for c in results.cosine if c.recipe == recipe)
    matrix, tasks = np.array(cosine.matrix), len(cosine.names)
    hidden = np.where(np.eye(tasks, dtype=bool), np.nan, matrix)
    bound = max(float(np.nanmax(np.abs(hidden), initial=0.0)), 1e-3) if tasks > 1 else 1.0
    signed = tasks > 1 and float(np.nanmin(hidden)) < -0.1 * bound
    colours = "PuOr" if signed else "Blues"
    side = 1.9 + 0.55 * tasks
    figure, axes = _axes(width=side + 0.9, height=side)
    axes.set_facecolor("#ececec")
    image = axes.imshow(hidden, cmap=colours, vmin=-bound if signed else 0.0, vmax=bound)
    for i in range(tasks):
        for j in range(tasks):
            strong = i != j and abs(matrix[i, j]) > 0.62 * bound
            axes.text(j, i, "1" if i == j else f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=8.5,
                      color="white" if strong else (MUTED if i == j else INK))  # fmt: skip
    axes.set_xticks(range(tasks), cosine.names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(tasks), cosine.names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.03)
    bar.set_label("Cosine between task vectors")
    bar.outline.set_visible(False)
    return figure


@rc_context(STYLE)
def cart_grid_figure(results: Results, recipe: str) -> Figure:
    """CART's validation score against the rank it keeps, one line a scale; the chosen points are marked."""
    curve = next(c for c in results.curves.cart_rank if c.recipe == recipe)
    figure, axes = _axes(height=4.2)
    percent = 100 * np.array(curve.rank_ratio)
    scores = 100 * np.array(curve.val_normalized)  # [R, S]
    for s, scale in enumerate(curve.scale):
        colour = _SEQUENCE[round(s * (len(_SEQUENCE) - 1) / max(len(curve.scale) - 1, 1))]
        axes.plot(percent, scores[:, s], color=colour, marker="o", markersize=4, label=f"scale {scale:g}")
    for ratio, scale in zip(curve.chosen_rank_ratio, curve.chosen_scale, strict=True):
        best = scores[curve.rank_ratio.index(ratio), curve.scale.index(scale)]
        axes.plot(100 * ratio, best, linestyle="none", marker="D", markersize=10, markerfacecolor="white",
                  markeredgecolor="#d55e00", markeredgewidth=2.2, zorder=5)  # fmt: skip
    axes.set_ylabel("Validation accuracy (% of the\nfine-tuned encoders'), mean over tasks")
    axes.legend(loc="best", fontsize=9.5)
    _rank_axis(axes, percent)
    return figure


@rc_context(STYLE)
def rank_figure(results: Results, recipe: str) -> Figure:
    """CART's test accuracy against the rank it keeps, at the scale that validation chose."""
    curve = next(c for c in results.curves.cart_rank if c.recipe == recipe)
    figure, axes = _axes(height=4.2)
    percent = 100 * np.array(curve.rank_ratio)
    test, error = 100 * np.array(curve.test_mean), 100 * np.array(curve.test_stderr)
    axes.errorbar(percent, test, yerr=error, color=COLOURS["cart"], marker="D", markersize=6, capsize=3,
                  elinewidth=1.2, label="CART, chosen scale")  # fmt: skip
    for method, style in (("average", "--"), ("probe", ":")):
        row = results.row(method, recipe)
        if row is not None:
            axes.axhline(100 * row.mean.value, color=MUTED, linestyle=style, linewidth=1.3, label=row.label)
    axes.set_ylabel("Test accuracy (%), mean over tasks")
    axes.legend(loc="best", fontsize=9.5)
    _rank_axis(axes, percent)
    return figure


@rc_context(STYLE)
def linearity_figure(results: Results) -> Figure:
    """Accuracy after post-hoc linearization against the fine-tuned encoder's, a point a task, a marker a recipe."""
    figure, axes = _axes(width=5.4, height=4.6)
    points = [m for line in results.linearity for m in (line.ordinary, line.linearized)]
    low, high = (100 * pick(m.value for m in points) for pick in (min, max))
    pad = 0.06 * (high - low) + 1
    axes.plot([low - pad, high + pad], [low - pad, high + pad], color=MUTED, linewidth=1, linestyle="--")
    for recipe, (colour, marker) in zip(results.recipes, _RECIPE_STYLES * len(results.recipes), strict=False):
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
    axes.grid(color=GRID, linewidth=0.7)
    axes.legend(loc="best", title="recipe")
    return figure


@rc_context(STYLE)
def sensitivity_figure(results: Results) -> Figure:
    """Relative change of per-image gradients over the steps of fine-tuning, one line a recipe."""
    figure, axes = _axes()
    for recipe, (colour, marker) in zip(results.recipes, _RECIPE_STYLES * len(results.recipes), strict=False):
        for curve in (c for c in results.sensitivity if c.recipe == recipe):
            axes.plot(curve.step, curve.change, color=colour, marker=marker, markersize=5, label=recipe)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Optimizer step")
    axes.set_ylabel("Change of gradients,\nrelative to those at the start")
    axes.grid(color=GRID, linewidth=0.7)
    axes.legend(loc="best", title="recipe")
    return figure


@rc_context(STYLE)
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
        padded = np.pad(strip, ((0, 0), (0, 0), (0, edge), (0, 0)), constant_values=255)
        axes.imshow(np.concatenate(list(padded), axis=1), interpolation="nearest")
        axes.set_axis_off()
        axes.text(-0.02, 0.5, name, ha="right", va="center", transform=axes.transAxes)
    return figure


def all_figures(results: Results) -> dict[str, bytes]:
    """Every figure that the results allow, as PNG: name such as ``lambda-full`` -> bytes."""
    figures: dict[str, bytes] = {}
    for recipe in results.recipes:
        drawn = [("accuracy", accuracy_figure, any(row.recipe == recipe for row in results.rows))]
        drawn += [("lambda", lambda_figure, any(c.recipe == recipe for c in results.curves.scale))]
        drawn += [("cosine", cosine_figure, any(c.recipe == recipe for c in results.cosine))]
        ranked = any(c.recipe == recipe for c in results.curves.cart_rank)
        drawn += [("cart-grid", cart_grid_figure, ranked), ("rank", rank_figure, ranked)]
        for name, draw, possible in drawn:
            if possible:
                figures[f"{name}-{recipe}"] = png(draw(results, recipe))
    if results.linearity:
        figures["linearity"] = png(linearity_figure(results))
    if results.sensitivity:
        figures["sensitivity"] = png(sensitivity_figure(results))
    return figures


def _axes(*, width: float = 6.2, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _accuracy_dot(axes: Axes, place: int, row: Row) -> None:
    colour = COLOURS.get(row.method, INK) if row.merged else "#8a8a8a"
    value, error = 100 * row.mean.value, 100 * row.mean.stderr
    axes.errorbar(value, place, xerr=error, color=colour, marker=MARKERS.get(row.method, "o"), markersize=7,
                  capsize=3, elinewidth=1.6)  # fmt: skip
    axes.annotate(f"{value:.1f}", (value + error, place), xytext=(7, 0), textcoords="offset points",
                  va="center", fontsize=9, color=INK)  # fmt: skip


def _rank_axis(axes: Axes, percent: np.ndarray) -> None:
    axes.set_xlabel("Rank kept (% of full rank)")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([float(p) for p in percent]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.grid(color=GRID, linewidth=0.7)
