"""A case, and what it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contest:
    """Ours, the baselines, and the bytes and FLOPs that nobody can do without."""

    ours: dict[str, Callable[[], Any]]
    baselines: dict[str, Callable[[], Any]]
    bytes_moved: int = 0
    flops: int = 0


CPU, CUDA = ("cpu",), ("cuda",)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    name: ``<op>/<model>``.
    op: The operator whose tests must be green before anything is timed; empty for a loop.
    build: Makes the inputs, on torch's default device, and the contenders.
    bars: Baseline -> the least ratio that the project promises on a CPU (measured and printed, never asserted).
    quick: Whether pytest-benchmark runs it too.
    devices: Where it runs.
    """

    name: str
    op: str
    build: Callable[[], Contest]
    bars: dict[str, float] = field(default_factory=dict)
    quick: bool = False
    devices: tuple[str, ...] = CPU
