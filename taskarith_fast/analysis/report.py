"""The HTML report of a merging study: one page, nothing outside it, all numbers from the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from taskarith_fast.analysis.figures_theme import Themed
from taskarith_fast.analysis.pages import inline, render
from taskarith_fast.analysis.results import Measured, Results, Row, StageTime

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Cell:
    """A number of the table as it is printed, in percent."""

    value: str
    stderr: str
    best: bool


@dataclass(frozen=True)
class TimeLine:
    """The stages of one group taken together."""

    group: str
    stages: int
    reused: int
    seconds: float
    peak_rss_mb: float
    peak_gpu_mb: float | None


def render_report(results: Results, figures: Mapping[str, Themed]) -> str:
    """Render the page.

    Args:
        results: What was found.
        figures: By name, as `figures.all_figures` makes them; ``tasks`` may be among them.

    Returns:
        A complete HTML document; images are embedded, nothing is loaded from elsewhere.
    """
    return render(
        _TEMPLATE,
        results=results,
        images={name: tuple(map(inline, images)) for name, images in figures.items()},
        sections=[_section(results, recipe) for recipe in results.recipes],
        times=group_times(results.timing),
        percent=_percent,
        percent_mean=lambda lines, name: f"{100 * sum(getattr(line, name).value for line in lines) / len(lines):.1f}",
        config=json.dumps(results.config, indent=2, ensure_ascii=False),
    )


def recipe_rows(results: Results, recipe: str) -> list[Row]:
    """The rows that the table of one recipe shows, in order: its own, and those that fine-tune nothing."""
    return [row for row in results.rows if row.recipe in ("", recipe)]


def best_merged(rows: list[Row]) -> Row | None:
    """The merged row with the highest mean test accuracy; the first of equals; None if nothing was merged."""
    return max((row for row in rows if row.merged), key=lambda row: row.mean.value, default=None)


def table(results: Results, recipe: str, *, normalized: bool) -> list[tuple[str, list[Cell]]]:
    """The accuracy table of one recipe: a line a task and one for the mean, a cell a method.

    The best merged model of each line is marked (all of them where they print the same).
    """
    rows = recipe_rows(results, recipe)
    lines = []
    for task in [*(task.name for task in results.tasks), "Mean"]:
        measured = [_pick(row, task, normalized) for row in rows]
        top = max(
            (f"{100 * m.value:.1f}" for m, row in zip(measured, rows, strict=True) if row.merged),
            key=float,
            default="",
        )
        lines.append((task, [_cell(m, row.merged, top) for m, row in zip(measured, rows, strict=True)]))
    return lines


def markdown_table(results: Results, recipe: str) -> str:
    """The absolute accuracy table of one recipe in Markdown, percent ± one standard error."""
    rows = recipe_rows(results, recipe)
    text = ["| task | " + " | ".join(row.label for row in rows) + " |", "|---|" + "---:|" * len(rows)]
    for task, cells in table(results, recipe, normalized=False):
        printed = (f"{cell.value} ± {cell.stderr}" for cell in cells)
        bold = (f"**{p}**" if cell.best else p for p, cell in zip(printed, cells, strict=True))
        text.append(f"| {task} | " + " | ".join(bold) + " |")
    normalized = (f"{100 * row.normalized_mean.value:.1f} ± {100 * row.normalized_mean.stderr:.1f}" for row in rows)
    return "\n".join([*text, "| Mean, normalised | " + " | ".join(normalized) + " |"]) + "\n"


def findings(results: Results, recipe: str) -> list[str]:
    """What the numbers of one recipe say, in sentences: gains over the probe, doubt included."""
    rows = [row for row in recipe_rows(results, recipe) if row.merged]
    sentences = []
    for row in sorted(rows, key=lambda row: -row.mean.value):
        gain, error = 100 * row.over_probe.value, 100 * row.over_probe.stderr
        doubt = "" if abs(gain) > 2 * error else ", which is within two standard errors of no difference"
        if row.method != "cart" and all(choice.get("scale") == 0 for choice in row.hyperparameters):
            doubt = ": validation chose scale 0, which is the pre-trained encoder"
        sentences.append(
            f"{row.label}: {100 * row.mean.value:.1f} % mean test accuracy, "
            f"{100 * row.normalized_mean.value:.1f} % of the fine-tuned encoders'; "
            f"{gain:+.1f} ± {error:.1f} points against the linear probe{doubt}."
        )
    return sentences + _edge_notes(results, recipe)


def group_times(timing: list[StageTime]) -> list[TimeLine]:
    """The stages summed by group, in the order in which the groups first ran."""
    lines = []
    for group in dict.fromkeys(stage.group for stage in timing):
        stages = [stage for stage in timing if stage.group == group]
        lines.append(
            TimeLine(
                group,
                len(stages),
                sum(stage.reused for stage in stages),
                sum(stage.seconds for stage in stages),
                max(stage.peak_rss_mb for stage in stages),
                max((stage.peak_gpu_mb for stage in stages if stage.peak_gpu_mb is not None), default=None),
            )
        )
    return lines


def _section(results: Results, recipe: str) -> dict[str, object]:
    rows = recipe_rows(results, recipe)
    return {
        "recipe": recipe,
        "title": results.recipes[recipe],
        "rows": rows,
        "best": best_merged(rows),
        "absolute": table(results, recipe, normalized=False),
        "normalized": table(results, recipe, normalized=True),
        "findings": findings(results, recipe),
    }


def _pick(row: Row, task: str, normalized: bool) -> Measured:
    if task == "Mean":
        return row.normalized_mean if normalized else row.mean
    return row.normalized[task] if normalized else row.accuracy[task]


def _percent(measured: Measured) -> str:
    return f"{100 * measured.value:.1f} ± {100 * measured.stderr:.1f}"


def _cell(measured: Measured, merged: bool, top: str) -> Cell:
    value = f"{100 * measured.value:.1f}"
    return Cell(value, f"{100 * measured.stderr:.1f}", merged and value == top)


def _edge_notes(results: Results, recipe: str) -> list[str]:
    """Say where validation chose the largest value it was offered: a wider grid might do better."""
    notes = []
    for curve in results.curves.scale:
        if curve.recipe == recipe and max(curve.scale) in curve.chosen:
            notes.append(f"{curve.label}: the chosen scale {max(curve.scale):g} is the largest that was tried.")
    for rank in results.curves.cart_rank:
        if rank.recipe == recipe and max(rank.scale) in rank.chosen_scale:
            notes.append(f"CART: the chosen scale {max(rank.scale):g} is the largest that was tried.")
    return notes
