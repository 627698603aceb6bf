"""A rough time for a plan, from bandwidths measured in a moment."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from typing import TYPE_CHECKING

from taskarith_fast.checkpoint.sources import fill, open_input

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan

_SAMPLE = 1 << 24  # bytes
_WRITE_SHARE = 0.25  # of the reading bandwidth: writing includes the disk


def estimate_seconds(plan: Plan) -> float:
    """Seconds: reading and writing one after the other, or the hashing beside them if that takes longer."""
    reading = _read_bandwidth(plan)
    cores = max(1, min((os.cpu_count() or 1) // 2, len(plan.inputs)))
    hashing = plan.hash_bytes / (_hash_bandwidth() * cores)
    return 0.2 + max(plan.read_bytes / reading + plan.write_bytes / (_WRITE_SHARE * reading), hashing)


def _read_bandwidth(plan: Plan) -> float:
    """Bytes a second of the base's first file."""
    file = plan.sources[0].files[0]
    buffer = memoryview(bytearray(min(_SAMPLE, file.stat().st_size)))
    with open_input(file) as stream:
        start = time.perf_counter()
        fill(stream.fileno(), 0, buffer, file)
        return max(len(buffer), 1 << 20) / max(time.perf_counter() - start, 1e-4)


@functools.cache
def _hash_bandwidth() -> float:
    data = bytes(_SAMPLE // 8)
    start = time.perf_counter()
    hashlib.sha256(data).digest()
    return len(data) / max(time.perf_counter() - start, 1e-6)
