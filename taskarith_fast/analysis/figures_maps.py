"""Figures that are maps: grids of scales, planes of weights, tables of tasks; each drawn from saved arrays alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from taskarith_fast.analysis.figures_theme import COLOURS, axes_of, theme

Arrays = Mapping[str, np.ndarray]


def disentanglement_map(arrays: Arrays) -> Figure:
    """The error over both scales, l1 to the right and l2 up; the square is [-1, 1]^2, where edits are used."""
    one, two, error = arrays["scales_1"], arrays["scales_2"], arrays["error"]
    figure, axes = axes_of(5.2, 4.4)
    image = axes.pcolormesh(one, two, error.T, cmap="viridis", vmin=0, shading="nearest")
    axes.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor="#ff4d4d", linewidth=1.6))
    axes.set_xlim(_edges(one))
    axes.set_ylim(_edges(two))
    axes.set_aspect("equal")
    tasks = arrays["tasks"].tolist()
    axes.set_xlabel(f"scale of {tasks[0]}" if len(tasks) == 2 else "first scale")
    axes.set_ylabel(f"scale of {tasks[1]}" if len(tasks) == 2 else "second scale")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("disentanglement error")
    bar.outline.set_visible(False)
    return figure


def table(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str, *, middle: float | None = None,
    low: float | None = None, high: float | None = None, digits: int = 2,
) -> Figure:  # fmt: skip
    """A matrix with its numbers; with a middle, colours diverge from it."""
    width, height = 2.3 + 0.54 * len(columns), 1.6 + 0.42 * len(rows)
    figure, axes = axes_of(width, height)
    finite = values[np.isfinite(values)]
    low = float(finite.min(initial=0.0)) if low is None else low
    high = float(finite.max(initial=1.0)) if high is None else high
    norm: Normalize = Normalize(low, high)
    if middle is not None:
        reach = max(float(np.abs(finite - middle).max(initial=0.0)), 1e-3)
        norm = TwoSlopeNorm(middle, middle - reach, middle + reach)
    colours = colormaps["PuOr" if middle is not None else "viridis"]
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto")
    for i, j in np.ndindex(values.shape):
        text = f"{values[i, j]:.{digits}f}" if np.isfinite(values[i, j]) else "–"
        axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color=_over(colours(norm(values[i, j]))[:3])
                  if np.isfinite(values[i, j]) else theme().muted)  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure


def cosine_map_figure(arrays: Arrays) -> Figure:
    """Cosines between task vectors."""
    return cosine_table(arrays["cosine"], arrays["models"].tolist())


def cosine_table(cosine: np.ndarray, names: Sequence[str]) -> Figure:
    """Cosines between task vectors; the diagonal is 1 by definition and left out."""
    values = np.where(np.eye(len(names), dtype=bool), np.nan, cosine)
    signed = bool(np.nanmin(values, initial=0.0) < -0.1 * np.nanmax(np.abs(values), initial=0.0))
    top = max(float(np.nanmax(values, initial=0.0)), 1e-3)
    bounds: Any = {"middle": 0.0} if signed else {"low": 0.0, "high": top}
    return table(values, names, names, "cosine between task vectors", **bounds)


def ratio_map(arrays: Arrays) -> Figure:
    """Accuracies of changed models over those before: rows are what was changed, columns what was judged."""
    rows = arrays["models" if "models" in arrays else "masks"].tolist()
    return table(arrays["ratio"], rows, arrays["tasks"].tolist(), "accuracy, relative to before", middle=1.0)


def drift_map(arrays: Arrays) -> Figure:
    """Changes of gradients relative to their size before: rows are models, columns tasks."""
    rows, columns = arrays["models"].tolist(), arrays["tasks"].tolist()
    return table(arrays["relative"], rows, columns, "squared change of gradients, relative to before", low=0.0)


def iou_map(arrays: Arrays) -> Figure:
    """Overlaps of masks."""
    names = arrays["masks"].tolist()
    return table(arrays["iou"], names, names, "intersection over union", low=0.0, high=1.0)


def density_map(arrays: Arrays) -> Figure:
    """Selected share of each type of layer at each depth, in percent, mean over the masks."""
    return _share(arrays, "density", "selected of the layer's weights (%)")


def budget_map(arrays: Arrays) -> Figure:
    """Share of all selected weights that each type of layer has at each depth, in percent, mean over the masks."""
    return _share(arrays, "share", "share of all selected weights (%)")


def landscape_map(arrays: Arrays) -> Figure:
    """Loss on the plane, summed over the tasks, with models, CART's way and task arithmetic's."""
    return _landscape(arrays, arrays["loss"].sum(-1), "loss, sum over tasks")


def landscapes_by_task(arrays: Arrays) -> dict[str, Figure]:
    """The same for each task alone, by its name."""
    return {
        name: _landscape(arrays, arrays["loss"][..., v], f"loss on {name}")
        for v, name in enumerate(arrays["tasks"].tolist())
    }


def _landscape(arrays: Arrays, loss: np.ndarray, label: str) -> Figure:
    figure, axes = axes_of(5.8, 4.6)
    low = float(loss.min())
    levels = low + (float(loss.max()) - low + 1e-9) * np.linspace(0, 1, 25) ** 2  # dense where the loss is low
    image = axes.contourf(arrays["x"], arrays["y"], loss.T, levels=levels, cmap="viridis", antialiased=False)
    models, ranks = len(arrays["models"]), len(arrays["rank_ratio"])
    place = arrays["coordinates"]
    way = place[1 + models : 1 + models + ranks]
    scales = arrays["scale_coordinates"]
    line: Any = {"linewidth": 1.3}
    dot: Any = {"s": 46, "edgecolor": "#101010", "zorder": 4}
    axes.plot(scales[:, 0], scales[:, 1], color="#f781d8", linestyle="--", label="task arithmetic, by scale", **line)
    axes.plot(way[:, 0], way[:, 1], color="#ff4d4d", marker="o", markersize=3.5, label="CART, by rank", **line)
    axes.scatter(*place[1 : 1 + models].T, color=COLOURS[1], marker="^", label="fine-tuned", **dot)
    axes.scatter(*place[0], color="#c9c9c9", marker="s", label="pre-trained", **dot)
    for name, (x, y) in zip(arrays["models"].tolist(), place[1 : 1 + models], strict=True):
        axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color="#ffffff")
    axes.set_xlabel(f"first component ({100 * arrays['explained'][0]:.0f} % of the variance)")
    axes.set_ylabel(f"second component ({100 * arrays['explained'][1]:.0f} %)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8.5, handlelength=1.6, columnspacing=1.2)
    bar = figure.colorbar(image, ax=axes, format="%.2f")
    bar.set_label(label)
    return figure


def _over(cell: Sequence[float]) -> str:
    """The colour of a text that can be read on a cell of this colour."""
    return "#101010" if float(np.dot(cell, (0.3, 0.6, 0.1))) > 0.5 else "#f6f6f6"


def _share(arrays: Arrays, what: str, label: str) -> Figure:
    kinds, depths = list(dict.fromkeys(arrays["kind"].tolist())), sorted(set(arrays["depth"].tolist()))
    cells = np.full((len(kinds), len(depths)), np.nan)
    for kind, depth, value in zip(arrays["kind"].tolist(), arrays["depth"].tolist(), arrays[what].mean(0), strict=True):
        cells[kinds.index(kind), depths.index(depth)] = 100 * value
    columns = ["–" if depth < 0 else str(depth) for depth in depths]
    figure = table(cells, kinds, columns, label, low=0.0, digits=1)
    figure.axes[0].set_xlabel("block (– is outside of the blocks)", color=theme().ink)
    return figure


def _edges(grid: np.ndarray) -> tuple[float, float]:
    half = (grid[-1] - grid[0]) / (2 * max(len(grid) - 1, 1)) or 0.5
    return float(grid[0] - half), float(grid[-1] + half)
