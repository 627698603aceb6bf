"""Line charts as inline SVG: colours are the page's, so they can be read on light and on dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 44
SERIES = 8
"""Colours there are, classes s0 to s7; further lines repeat them dashed."""


@dataclass(frozen=True)
class Line:
    """One line of a chart, its points in ascending order of x."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str, title: str) -> str:
    """Draw lines over common axes.

    Args:
        lines: At least one, with at least one point.
        x_label, y_label: What the axes mean.
        title: What a reader who cannot see the chart is told.

    Returns:
        An ``<svg>`` element without ids, styles or scripts.
    """
    xs, ys = [x for line in lines for x in line.x], [y for line in lines for y in line.y]
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    to_x = _scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    to_y = _scale(min(ys), max(ys), _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{to_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        parts.append(f'<text x="{to_x(x):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(14 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for i, line in enumerate(lines):
        kind = f"s{i % SERIES}" + (" dashed" if i >= SERIES else "")
        points = [(to_x(x), to_y(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts.append(f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        for (px, py), x, y in zip(points, line.x, line.y, strict=True):
            tip = f"<title>{escape(line.label)}: {y:g} at {x:g}</title>"
            parts.append(f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="3">{tip}</circle>')
    return "".join([*parts, "</svg>"])


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """The linear map of [low, high] to [start, stop]; one value goes to the middle."""
    if high == low:
        return lambda value: (start + stop) / 2
    return lambda value: start + (stop - start) * (value - low) / (high - low)


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers inside [low, high], at most so many; the value itself where there is one."""
    if high == low:
        return [low]
    raw = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
