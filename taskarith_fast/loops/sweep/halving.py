"""Successive halving: few images for all points, more for the best (Jamieson & Talwalkar 2016).

Only points that merge the same tasks with the same seed compete. What goes on is decided from the first images
alone, so a sweep that was killed decides the same again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from taskarith_fast.loops.sweep.file import HalvingTable
from taskarith_fast.loops.sweep.job import Job

Score = Callable[[Job, float], float | None]
"""The score of a job on a share of its images, None if it has none."""


def rungs(table: HalvingTable) -> list[float]:
    """Shares of the images, ascending, the last 1."""
    return [table.eta ** -(table.rungs - 1 - i) for i in range(table.rungs)]


def climb(table: HalvingTable, jobs: Sequence[Job], score: Score) -> Iterator[list[Job]]:
    """Jobs of one rung after the other; each must be done before the next is asked for."""
    alive = [list(group) for group in _rivals(jobs)]
    for share in rungs(table):
        yield [replace(job, share=(0.0, share), cost=job.cost * share) for group in alive for job in group]
        alive = [_best(group, share, table.eta, score) for group in alive]


def _rivals(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(json.dumps([job.labels["tasks"], job.labels.get("seed")]), []).append(job)
    return list(groups.values())


def _best(group: list[Job], share: float, eta: int, score: Score) -> list[Job]:
    """The best of so many, at least one; of equals the first; those without a score are out."""
    scored = [(found, job) for job in group if (found := score(job, share)) is not None]
    scored.sort(key=lambda pair: -pair[0])
    return [job for _, job in scored[: max(1, len(group) // eta)]]
