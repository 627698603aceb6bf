"""From jobs to rows: hand out, wait, write down, until nothing is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from taskarith_fast.errors import DataError
from taskarith_fast.loops.sweep.clock import Clock
from taskarith_fast.loops.sweep.job import Job, Outcome, Train
from taskarith_fast.loops.sweep.pool import Pool
from taskarith_fast.loops.sweep.schedule import Schedule
from taskarith_fast.loops.sweep.store import Row, Store

_ATTEMPTS = 2
_NEEDS_FAILED = "it needs a point that failed"


class Sweep:
    """The points of a sweep, in the database and in memory.

    Args:
        store: Where they are kept.
        pool: Who computes them.
        clock: Is told of every point.
    """

    def __init__(self, store: Store, pool: Pool, clock: Clock) -> None:
        self._store, self._pool, self._clock = store, pool, clock
        self.rows = {row.key: row for row in store.rows()}

    def undone(self, jobs: Sequence[Job]) -> list[Job]:
        """Those of the jobs, in an order of needs first, whose results up to their share are not there.

        A trained file that was deleted is made again if a job that is not done reads it.
        """
        undone: list[Job] = []
        needed: set[str] = set()
        for job in reversed(jobs):
            row = self.rows.get(job.key)
            there = row is not None and row.state == "done" and row.share >= job.share[1]
            if there and isinstance(job.work, Train) and job.key in needed:
                there = job.work.output.exists()
            if not there:
                undone.append(job)
                needed.update(job.needs)
        return undone[::-1]

    def run(self, jobs: Sequence[Job]) -> None:
        """Do the jobs that are not done.

        Raises:
            DataError: If the disk is full; finished points are kept.
        """
        todo = [self._rest(job) for job in self.undone(jobs)]
        finished = {key for key, row in self.rows.items() if row.state == "done"} - {job.key for job in todo}
        schedule = Schedule(todo, finished)
        busy: dict[int, Job] = {}
        lost: dict[str, int] = {}
        while len(schedule) or busy:
            for worker in self._pool.idle():
                job = schedule.take(worker)
                if job is not None:
                    busy[worker] = job
                    self._pool.submit(worker, job)
            if not busy:  # what is left needs points that failed in an earlier batch
                for job in schedule.drain():
                    self._put(job, Outcome(job.key, error=_NEEDS_FAILED))
                return
            for worker, outcome in self._pool.wait():
                job = busy.pop(worker)
                if outcome is None:
                    lost[job.key] = lost.get(job.key, 0) + 1
                    if lost[job.key] < _ATTEMPTS:
                        schedule.retry(job)
                        continue
                    outcome = Outcome(job.key, error="its worker died each time, perhaps for lack of memory")
                if outcome.disk_full:
                    raise DataError(f"{self._store.path.parent}: {outcome.error}; finished points are kept")
                self._put(job, outcome)
                if outcome.error is None:
                    schedule.finish(job)
                    continue
                for dropped in schedule.fail(job):
                    self._put(dropped, Outcome(dropped.key, error=_NEEDS_FAILED))

    def _rest(self, job: Job) -> Job:
        """What is left of a job of which a part of the images was judged."""
        row = self.rows.get(job.key)
        if row is None or row.state != "done" or isinstance(job.work, Train):
            return job
        return replace(job, share=(row.share, job.share[1]), cost=job.cost * (1 - row.share / job.share[1]))

    def _put(self, job: Job, outcome: Outcome) -> None:
        row = _joined(job, outcome, self.rows.get(job.key) if job.share[0] > 0 else None)
        self._store.put(row)
        self.rows[job.key] = row
        self._clock.tick(job, row)


def correct_of(row: Row) -> dict[str, np.ndarray]:
    """Task -> bool [images], True where the prediction was right, in the sweep's fixed random order."""
    bits, found, start = np.frombuffer(row.correct, np.uint8), {}, 0
    for task, (_, images) in row.results.items():
        size = -(-images // 8)
        found[task] = np.unpackbits(bits[start : start + size], count=images).astype(bool)
        start += size
    return found


def _joined(job: Job, outcome: Outcome, before: Row | None) -> Row:
    """The row of an outcome, behind what was known of the first images."""
    known: Mapping[str, np.ndarray] = correct_of(before) if before else {}
    correct = {
        task: np.concatenate([known.get(task, np.zeros(0, bool)), np.frombuffer(found, np.uint8).astype(bool)])
        for task, found in outcome.correct.items()
    }
    return Row(
        key=job.key,
        kind=job.kind,
        state="failed" if outcome.error else "done",
        labels=dict(job.labels),
        identity=dict(job.identity),
        share=0.0 if outcome.error else job.share[1],
        results={task: (int(found.sum()), len(found)) for task, found in correct.items()},
        correct=b"".join(np.packbits(found).tobytes() for found in correct.values()),
        facts=dict(outcome.facts),
        seconds=outcome.seconds + (before.seconds if before else 0.0),
        arithmetic_seconds=outcome.arithmetic_seconds + (before.arithmetic_seconds if before else 0.0),
        error=outcome.error,
    )
