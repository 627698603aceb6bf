"""Interleaved timing, peak memory, and facts about the machine."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stats:
    """Seconds of one contender: median, minimum, maximum, how many runs; and its peak extra memory in bytes."""

    median: float
    minimum: float
    maximum: float
    runs: int
    extra_bytes: int


def interleave(
    contenders: dict[str, Callable[[], Any]], runs: int, slow_runs: int, slow: float = 3.0
) -> dict[str, Stats]:
    """Run every contender once a round, so that a change of the machine's speed meets all of them.

    Args:
        contenders: Name -> what to time; its result is dropped at once.
        runs: Rounds for contenders that take less than `slow` seconds.
        slow_runs: Rounds for the others.
        slow: Seconds.

    Returns:
        Name -> Stats; the first, warming round is not counted for fast contenders.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    extra: dict[str, int] = {}
    for round_ in range(runs + 1):
        for name, run in contenders.items():
            seen = times[name]
            if len(seen) >= slow_runs and seen[0] > slow:
                continue
            before = _reset_peak()
            start = time.perf_counter()
            result = run()
            elapsed = time.perf_counter() - start
            extra[name] = max(extra.get(name, 0), _peak() - before)
            del result
            if round_ > 0 or elapsed > slow:
                seen.append(elapsed)
    return {name: Stats(statistics.median(t), min(t), max(t), len(t), extra[name]) for name, t in times.items()}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> int:
    """Start a new high-water mark of resident memory; returns the bytes resident now (0 where the system hides it)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return 0


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return 0


def machine_facts(threads: int) -> dict[str, Any]:
    """Processor, versions, commit: what a reader needs to repeat a measurement."""
    import numpy
    import torch

    from taskarith_fast import native

    return {
        "processor": _processor(),
        "threads": threads,
        "features": native.cpu_features(),
        "read_gb_per_s": round(native.read_bandwidth(threads) / 1e9, 1),
        "fma_gflop_per_s": round(native.fma_peak(threads) / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _commit() -> str:
    try:
        root = Path(__file__).resolve().parent
        short = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=root, text=True).strip()
        dirty = subprocess.check_output(["git", "status", "--porcelain", "-uno"], cwd=root, text=True).strip()
        return short + ("+changes" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
