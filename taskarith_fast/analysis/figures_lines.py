"""Figures that are curves of accuracy; each drawn from saved arrays alone, with standard errors over the images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from taskarith_fast.analysis.figures_theme import COLOURS, MARKERS, axes_of, theme

Arrays = Mapping[str, np.ndarray]
_NORMALIZED = "accuracy (% of the tasks' own\nmodels'), mean over tasks"


def lambda_figure(arrays: Arrays) -> Figure:
    """Accuracy of every task and their mean along the scale."""
    figure, axes = axes_of()
    for v, name in enumerate(arrays["tasks"].tolist()):
        axes.plot(arrays["scales"], 100 * arrays["accuracy"][:, v], color=_colour(v), linewidth=1.1, label=name)
    _band(axes, arrays["scales"], arrays["accuracy"], arrays["accuracy_stderr"], theme().ink, "o", "mean")
    axes.set_xlabel("scale")
    axes.set_ylabel("accuracy (%)")
    axes.grid(linewidth=0.7)
    axes.legend(fontsize=8.5, ncols=2)
    return figure


def normalized_lambda_figure(arrays: Arrays) -> Figure:
    """Mean over the tasks of accuracy relative to each task's own model, along the scale."""
    figure, axes = axes_of()
    axes.plot(arrays["scales"], 100 * arrays["normalized"], color=COLOURS[0], marker="o", markersize=4)
    axes.set_xlabel("scale")
    axes.set_ylabel(_NORMALIZED)
    axes.grid(linewidth=0.7)
    return figure


def compared_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str) -> Figure:
    """Several curves of normalised accuracy, name -> places and values, in one pair of axes."""
    figure, axes = axes_of()
    for c, (name, (x, y)) in enumerate(curves.items()):
        axes.plot(x, 100 * y, color=_colour(c), marker=_marker(c), markersize=4.5, label=name)
    axes.set_xlabel(label)
    axes.set_ylabel(_NORMALIZED)
    axes.grid(linewidth=0.7)
    axes.legend(fontsize=8.5)
    return figure


def rank_figure(arrays: Arrays) -> Figure:
    """Mean accuracy along the rank: colours are origins, full lines the strongest parts, dashed the weakest."""
    figure, axes = axes_of(height=3.8)
    words = {"average": "around the average", "base": "around the base",
             "largest": "strongest parts", "smallest": "weakest parts"}  # fmt: skip
    for o, origin in enumerate(arrays["origins"].tolist()):
        for d, order in enumerate(arrays["orders"].tolist()):
            label = f"{words[origin]}, {words[order]}"
            style = "-" if order == "largest" else "--"
            _band(axes, 100 * arrays["rank_ratio"], arrays["accuracy"][o, d], arrays["accuracy_stderr"][o, d],
                  _colour(o), _marker(d), label, style)  # fmt: skip
    _rank_axis(axes)
    axes.legend(fontsize=8.5)
    return figure


def rank_by_task(arrays: Arrays) -> Figure:
    """Accuracy of every task along the rank, for the first origin and order."""
    figure, axes = axes_of(height=3.8)
    for v, name in enumerate(arrays["tasks"].tolist()):
        values = 100 * arrays["accuracy"][0, 0, :, v]
        axes.plot(100 * arrays["rank_ratio"], values, color=_colour(v), marker=_marker(v), markersize=4, label=name)
    _rank_axis(axes)
    axes.legend(fontsize=8.5, ncols=2)
    return figure


def task_count_figure(arrays: Arrays) -> Figure:
    """Every subset as a dot, mean over its tasks, and the mean of each size."""
    return _subsets(arrays, arrays["mean"], "accuracy (%), mean over a subset's tasks")


def normalized_task_count_figure(arrays: Arrays) -> Figure:
    """The same relative to the tasks' own models."""
    return _subsets(arrays, arrays["normalized"], "accuracy (% of the tasks' own models')")


def radar_figure(arrays: Arrays) -> Figure:
    """Single-task accuracy, one ray a task and one line a recipe."""
    tasks = arrays["tasks"].tolist()
    angles = 2 * np.pi * np.arange(len(tasks) + 1) / len(tasks)
    figure, axes = axes_of(5.6, 5.0, subplot_kw={"projection": "polar"})
    for m, recipe in enumerate(arrays["recipes"].tolist()):
        values = 100 * np.append(arrays["accuracy"][m], arrays["accuracy"][m, 0])
        axes.plot(angles, values, color=_colour(m), marker=_marker(m), markersize=4.5, label=recipe)
        axes.fill(angles, values, color=_colour(m), alpha=0.08)
    axes.set_xticks(angles[:-1], tasks)
    least = 100 * float(arrays["accuracy"].min())
    axes.set_ylim(max(0.0, 10 * np.floor(least / 10) - 10), 100)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.grid(linewidth=0.7, color=theme().grid)
    axes.spines["polar"].set_color(theme().muted)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=9)
    return figure


def _subsets(arrays: Arrays, values: np.ndarray, label: str) -> Figure:
    figure, axes = axes_of()
    count = arrays["members"].sum(1)
    spread = np.linspace(-0.14, 0.14, 7)
    axes.scatter(
        count + spread[np.arange(len(count)) % 7], 100 * values, s=14, color=COLOURS[0], alpha=0.6, label="a subset"
    )
    sizes = np.unique(count)
    axes.plot(sizes, [100 * values[count == size].mean() for size in sizes], color=COLOURS[1], marker="D", label="mean")
    axes.set_xticks(sizes)
    axes.set_xlabel("tasks merged")
    axes.set_ylabel(label)
    axes.grid(linewidth=0.7)
    axes.legend(fontsize=9)
    return figure


def _band(axes, x, accuracy, error, colour, marker, label, style="-") -> None:  # type: ignore[no-untyped-def]
    """The mean over tasks [..., V] with one standard error of it around."""
    mean = 100 * accuracy.mean(-1)
    spread = 100 * np.sqrt((error**2).sum(-1)) / accuracy.shape[-1]
    axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, mean, color=colour, marker=marker, markersize=4.5, linestyle=style, label=label)


def _rank_axis(axes) -> None:  # type: ignore[no-untyped-def]
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.5)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("rank kept (% of full rank)")
    axes.set_ylabel("accuracy (%)")
    axes.grid(linewidth=0.7)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _marker(place: int) -> str:
    return MARKERS[place % len(MARKERS)]
