"""The HTML page of a sweep: the best points, curves along the scale, and every point in a table that sorts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from taskarith_fast.analysis.line_chart import SERIES, Line, line_chart
from taskarith_fast.analysis.pages import render

_TEMPLATE = "sweep.html.j2"
_MOST_ROWS = 2000
_MOST_LINES = 2 * SERIES

Record = Mapping[str, Any]


def render_sweep(
    title: str, best: Sequence[Record], merges: Sequence[Record], columns: Sequence[str], facts: Mapping[str, Any]
) -> str:
    """Render the page.

    Args:
        title: Its heading.
        best: Records to put first, best first; each has "settings" besides the columns.
        merges: Every merge that was judged; "scale" is the axis of the curves, "line" what names a curve, "chart" what
            names a chart.
        columns: What the table of points shows, in order.
        facts: Configuration and provenance, plain JSON values.

    Returns:
        A complete HTML document; nothing is loaded from elsewhere.
    """
    ordered = sorted(merges, key=_score, reverse=True)
    return render(
        _TEMPLATE,
        title=title,
        best=best,
        charts=_charts(merges),
        columns=columns,
        rows=ordered[:_MOST_ROWS],
        left_out=max(0, len(ordered) - _MOST_ROWS),
        points=len(merges),
        facts=json.dumps(facts, indent=2, ensure_ascii=False),
        series=SERIES,
        cell=_cell,
    )


def _charts(merges: Sequence[Record]) -> list[dict[str, Any]]:
    """One chart a set of tasks, seed and recipe; the lines with the best points where there are too many."""
    charts: dict[str, dict[str, list[Record]]] = {}
    for record in merges:
        if isinstance(record.get("scale"), (int, float)):
            charts.setdefault(record["chart"], {}).setdefault(record["line"], []).append(record)
    found = []
    for name, groups in charts.items():
        several = {line: records for line, records in groups.items() if len(records) > 1}
        if not several:
            continue
        best = sorted(several, key=lambda line: -max(map(_score, several[line])))[:_MOST_LINES]
        lines = [_line(line, several[line]) for line in several if line in best]
        svg = line_chart(lines, x_label="scale", y_label="accuracy, %", title=f"Accuracy along the scale: {name}")
        labels = [(line.label, i % SERIES, i >= SERIES) for i, line in enumerate(lines)]
        found.append({"name": name, "svg": svg, "labels": labels, "left_out": len(several) - len(lines)})
    return found


def _line(label: str, records: Sequence[Record]) -> Line:
    ordered = sorted(records, key=lambda record: record["scale"])
    return Line(label, [r["scale"] for r in ordered], [round(100 * r["mean"], 2) for r in ordered])


def _score(record: Record) -> float:
    return record["mean"] if record.get("normalized") is None else record["normalized"]


def _cell(record: Record, column: str) -> str:
    value = record.get(column)
    if value is None:
        return ""
    if column in ("mean", "normalized") or column.startswith("accuracy."):
        return f"{100 * value:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
