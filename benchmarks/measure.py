"""Interleaved timing, and facts about the machine."""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, CpuClock


@dataclass(frozen=True)
class Stats:
    """Seconds of one contender: median, minimum, maximum, how many runs; and its peak extra memory in bytes."""

    median: float
    minimum: float
    maximum: float
    runs: int
    extra_bytes: int


def interleave(
    contenders: dict[str, Callable[[], Any]], runs: int, slow_runs: int, slow: float = 3.0, clock: Clock | None = None
) -> dict[str, Stats]:
    """Run every contender once a round, so that a change of the machine's speed meets all of them.

    Args:
        contenders: Name -> what to time; its result is dropped at once.
        runs: Rounds for contenders that take less than `slow` seconds.
        slow_runs: Rounds for the others.
        slow: Seconds.
        clock: The device's clock; the processor's by default.

    Returns:
        Name -> Stats; the first, warming round is not counted for fast contenders.
    """
    clock = clock or CpuClock()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    extra: dict[str, int] = {}
    for round_ in range(runs + 1):
        for name, run in contenders.items():
            seen = times[name]
            if len(seen) >= slow_runs and seen[0] > slow:
                continue
            elapsed, peak = clock.run(run)
            extra[name] = max(extra.get(name, 0), peak)
            if round_ > 0 or elapsed > slow:
                seen.append(elapsed)
    return {name: Stats(statistics.median(t), min(t), max(t), len(t), extra[name]) for name, t in times.items()}


def machine_facts(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Processor or GPU, versions, commit: what a reader needs to repeat a measurement."""
    import numpy
    import torch

    from taskarith_fast import native

    facts: dict[str, Any] = {"processor": _processor(), "threads": threads, "features": native.cpu_features()}
    if device == "cuda":
        name, copied = torch.cuda.get_device_name(), copy_bandwidth()
        facts |= {"gpu": name, "copy_gb_per_s": round(copied / 1e9), "cuda": torch.version.cuda}
        facts |= {f"{kind}_tflop_per_s": round(matmul_flops(kind) / 1e12) for kind in ("float32", "bfloat16")}
    else:
        facts |= {
            "read_gb_per_s": round(native.read_bandwidth(threads) / 1e9, 1),
            "fma_gflop_per_s": round(native.fma_peak(threads) / 1e9, 1),
        }
    return facts | {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "commit": _commit(),
    }


def bandwidth(device: str, threads: int) -> float:
    """Bytes per second that the device's memory was seen to move, now."""
    from taskarith_fast import native

    return copy_bandwidth() if device == "cuda" else native.read_bandwidth(threads, 3)


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 2 GiB within the GPU's memory."""
    import torch

    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    seconds = _best_on_gpu(lambda: target.copy_(source))
    return 2 * source.numel() / seconds


def matmul_flops(dtype: str, size: int = 4096) -> float:
    """FLOP per second of torch's product of two square matrices of random numbers."""
    import torch

    a, b = (torch.randn(size, size, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
    return 2 * size**3 / _best_on_gpu(lambda: a @ b)


def _best_on_gpu(run: Callable[[], Any], runs: int = 6) -> float:
    from benchmarks.clock import CudaClock

    clock = CudaClock()
    return min(clock.run(run)[0] for _ in range(runs))


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
