"""One timed run on a device: seconds by that device's own clock, and the memory it took beyond what was held."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

FLUSHED = 256 * 2**20  # bytes written between runs, more than any GPU's L2


class Clock(Protocol):
    def run(self, contender: Callable[[], Any]) -> tuple[float, int]:
        """Seconds and peak extra bytes of one run, whose result is dropped."""


class CpuClock:
    """Wall time, and the high-water mark of resident memory (0 where the system hides it)."""

    def run(self, contender: Callable[[], Any]) -> tuple[float, int]:
        before = reset_peak()
        start = time.perf_counter()
        result = contender()
        elapsed = time.perf_counter() - start
        extra = peak_resident() - before
        del result
        return elapsed, extra


class CudaClock:
    """Time between two events on the current stream, after the L2 cache was overwritten; torch's allocator's peak.

    The gaps in which the device waits for the host are inside, as in a user's program.
    """

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._cache = torch.empty(FLUSHED // 4, dtype=torch.int32, device="cuda")

    def run(self, contender: Callable[[], Any]) -> tuple[float, int]:
        cuda, (start, end) = self._torch.cuda, self._events
        self._cache.zero_()
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        start.record()
        result = contender()
        end.record()
        end.synchronize()
        extra = cuda.max_memory_allocated() - before
        del result
        return start.elapsed_time(end) / 1e3, extra


def clock_of(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def reset_peak() -> int:
    """Start a new high-water mark of resident memory; returns the bytes resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return resident()


def resident() -> int:
    """The bytes that this program holds now; 0 where the system hides it."""
    return _status("VmRSS")


def peak_resident() -> int:
    """This program's high-water mark in bytes; getrusage's would be inherited from the process that started it."""
    return _status("VmHWM")
