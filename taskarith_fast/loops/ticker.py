"""How far a long job is and how long it will take: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from taskarith_fast.progress import Progress


class Ticker:
    """The progress of the whole job: a bar on a terminal, else a line for every stage.

    Args:
        total: Sum of the costs of the stages that will run.
        reused: Number of stages that need not.
    """

    def __init__(self, total: float, reused: int) -> None:
        self._live = sys.stderr.isatty()
        self.progress = Progress(enabled=self._live)
        self._total, self._done, self._stage_cost, self._stage_done = max(total, 1e-9), 0.0, 0.0, 0.0
        self._name, self._started = "", time.perf_counter()
        if reused:
            self._say(f"{reused} finished stages are reused")

    def __enter__(self) -> Ticker:
        self._context = self.progress.stage("demo", 100)
        self._bar = self._context.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)  # type: ignore[arg-type]

    def begin(self, name: str, cost: float) -> None:
        """Start a stage that is expected to cost so much."""
        self._name, self._stage_cost, self._stage_done = name, cost, 0.0
        self._stage_started = time.perf_counter()
        self._bar.advance(0, note=name)

    def advance(self, cost: float) -> None:
        """Count a part of the stage as done, at most all of it."""
        cost = min(cost, self._stage_cost - self._stage_done)
        self._stage_done += cost
        self._done += cost
        self._bar.advance(100 * cost / self._total)

    def end(self) -> None:
        """Count the rest of the stage as done."""
        self.advance(self._stage_cost)
        now = time.perf_counter()
        left = (now - self._started) * (self._total - self._done) / max(self._done, 1e-9)
        self._say(
            f"{self._name}: {now - self._stage_started:.1f} s ({100 * self._done / self._total:.0f} %, "
            f"about {left / 60:.1f} min left)"
        )

    def _say(self, text: str) -> None:
        if self._live:
            self.progress.message(text)
        else:
            print(text, file=sys.stderr, flush=True)
