"""Progress bars with the time left: one thin wrapper, so that nothing else knows how they are drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Stage:
    """One bar: a piece of work whose length is known. `Progress.stage` makes it."""

    def __init__(self, bars: Any = None, bar: Any = None) -> None:
        self._bars, self._bar = bars, bar

    def advance(self, steps: float = 1, note: str | None = None) -> None:
        """Count `steps` as done; `note` replaces the few words beside the bar, such as the loss."""
        if self._bars is not None:
            self._bars.update(self._bar, advance=steps, **({} if note is None else {"note": note}))


class Progress:
    """Live bars on the standard error stream.

    Bars are nested by opening a stage inside another; a stage vanishes when it ends. Where they are not
    shown, every method is next to free, so loops take a Progress and never ask whether it is seen.

    Args:
        enabled: Draw the bars; None draws them if the standard error stream is a terminal.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self._enabled = sys.stderr.isatty() if enabled is None else enabled
        self._bars: Any = None
        self._open = 0

    @contextmanager
    def stage(self, label: str, total: float | None = None) -> Iterator[Stage]:
        """Show one bar while the block runs.

        Args:
            label: What is being done, a few words.
            total: Steps it takes, or None if that is not known.
        """
        if not self._enabled:
            yield Stage()
            return
        if self._bars is None:
            self._bars = _new_bars()
        if self._open == 0:
            self._bars.start()
        self._open += 1
        bar = self._bars.add_task(label, total=total, note="")
        try:
            yield Stage(self._bars, bar)
        finally:
            self._bars.remove_task(bar)
            self._open -= 1
            if self._open == 0:
                self._bars.stop()

    def track(self, items: Iterable[T], label: str, total: float | None = None) -> Iterator[T]:
        """Yield `items` under a bar; the length is asked of `items` where `total` is not given."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.stage(label, total) as stage:
            for item in items:
                yield item
                stage.advance()

    def message(self, text: str) -> None:
        """Print a line above the bars; nothing where the bars are not shown."""
        if self._enabled:
            bars = self._bars or _new_bars()
            bars.console.print(text, highlight=False, markup=False)


SILENT = Progress(enabled=False)


def _new_bars() -> Any:
    # rich is imported late: the package must be importable in a moment.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
