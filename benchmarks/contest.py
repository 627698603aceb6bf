"""What a case runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Contest:
    """Ours, the baselines, and the bytes and FLOPs that nobody can do without."""

    ours: dict[str, Callable[[], Any]]
    baselines: dict[str, Callable[[], Any]]
    bytes_moved: int = 0
    flops: int = 0
