"""How figures look on light and on dark pages: the same drawing, two sets of colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours in middle tones, which stand out from white and from near-black alike, and stay apart for
# colour-blind readers.
COLOURS = ("#2f8fcf", "#d98500", "#14a37a", "#c25fa0", "#d3603b", "#8a8a2a", "#7a78d0", "#909090")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

Themed = tuple[bytes, bytes]
"""A figure as PNG, for light pages and for dark ones."""

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Theme:
    """Colours of text, lines and page."""

    ink: str
    muted: str
    grid: str
    page: str
    sequence: tuple[str, ...]
    """Steps of one colour, from what is next to the page to what stands out most."""


THEMES = {
    "light": Theme(
        ink="#1b1b1b", muted="#666666", grid="#dddddd", page="#ffffff",
        sequence=("#a9cce6", "#7fb3d9", "#5a9ccb", "#2f7ab5", "#135a97", "#083a6b"),
    ),
    "dark": Theme(
        ink="#e8e8e8", muted="#a5a9ae", grid="#3a3f44", page="#16181b",
        sequence=("#2a5f8f", "#3b7cb5", "#569bd3", "#7db9e8", "#a9d3f5", "#d8edfd"),
    ),
}  # fmt: skip
_theme: ContextVar[Theme] = ContextVar("theme", default=THEMES["light"])


def theme() -> Theme:
    """The theme that is drawn in now."""
    return _theme.get()


@contextmanager
def themed(name: str) -> Iterator[None]:
    """Draw in a theme inside the block."""
    chosen = THEMES[name]
    token = _theme.set(chosen)
    colours: Any = {
        "text.color": chosen.ink, "axes.labelcolor": chosen.ink, "axes.edgecolor": chosen.muted,
        "axes.facecolor": chosen.page, "figure.facecolor": chosen.page, "savefig.facecolor": chosen.page,
        "xtick.color": chosen.muted, "ytick.color": chosen.muted, "xtick.labelcolor": chosen.ink,
        "ytick.labelcolor": chosen.ink, "grid.color": chosen.grid, "legend.labelcolor": chosen.ink,
    }  # fmt: skip
    try:
        with rc_context({**_STYLE, **colours}):
            yield
    finally:
        _theme.reset(token)


def axes_of(width: float = 5.4, height: float = 3.5, **options: Any) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, narrow enough for its text to be read on a phone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**options)


def png(figure: Figure) -> bytes:
    """The figure as a PNG of 200 dots an inch on its theme's page."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor=theme().page, metadata={"Software": None})
    return buffer.getvalue()


def in_both(draw: Callable[[], Figure]) -> Themed:
    """A figure for light pages and for dark ones."""
    images = []
    for name in THEMES:
        with themed(name):
            images.append(png(draw()))
    light, dark = images
    return light, dark
