"""How far a sweep is: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from taskarith_fast.loops.sweep.job import Job
from taskarith_fast.loops.sweep.store import Row
from taskarith_fast.progress import Stage

_EVERY = 15.0  # seconds between two lines


class Clock:
    """Counts points as they are finished.

    Args:
        bar: Shows them, of 100.
        lines: Print lines on the standard error stream.
    """

    def __init__(self, bar: Stage, *, lines: bool) -> None:
        self._bar, self._lines, self._shown = bar, lines, 0.0
        self._points, self._spent = 0, 0.0
        self._left: dict[str, int | float] = {"points": 0, "cost": 0.0}
        self._start = self._said = time.perf_counter()

    def expect(self, *jobs: Sequence[Job]) -> None:
        """Say what is left to do, as far as it is known."""
        self._left = {"points": sum(map(len, jobs)), "cost": sum(job.cost for group in jobs for job in group)}

    def tick(self, job: Job, row: Row) -> None:
        """One point is in the database."""
        step = (100 - self._shown) * min(1.0, job.cost / max(self._left["cost"], 1e-9))
        self._bar.advance(step, row.error or job.family)
        self._shown += step
        self._points, self._spent = self._points + 1, self._spent + job.cost
        self._left = {"points": self._left["points"] - 1, "cost": max(self._left["cost"] - job.cost, 0.0)}
        now = time.perf_counter()
        if self._lines and (now - self._said >= _EVERY or row.error or self._left["points"] <= 0):
            self._said = now
            print(f"{self.text(now)}{': ' + row.error if row.error else ''}", file=sys.stderr, flush=True)

    def text(self, now: float) -> str:
        """Points done, and the time that the others take at the same speed."""
        minutes = (now - self._start) * self._left["cost"] / max(self._spent, 1e-9) / 60
        return f"{self._points} points done, {self._left['points']} to go, about {minutes:.1f} min left"
