"""How long the parts of an optimizer step take."""

from __future__ import annotations

import statistics
import time

import torch

PARTS = ("forward_backward", "step")


class StepClock:
    """Laps of a training loop, in seconds; on a GPU each lap waits for what was queued.

    Args:
        device: Where the loop runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: dict[str, list[float]] = {part: [] for part in PARTS}
        self._since = 0.0

    def start(self) -> None:
        """Begin the first lap of a step."""
        self._since = self._now()

    def lap(self, part: str) -> None:
        """End a lap and begin the next."""
        now = self._now()
        self._laps[part].append(now - self._since)
        self._since = now

    def medians(self) -> dict[str, float]:
        """Part -> median seconds of an optimizer step; 0 for a loop without steps."""
        return {part: statistics.median(laps) if laps else 0.0 for part, laps in self._laps.items()}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
