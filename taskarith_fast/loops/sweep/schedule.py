"""Which worker does what next: whole families where possible, so that what they share is made once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from taskarith_fast.loops.sweep.job import Job


class Schedule:
    """Jobs waiting, by family; a worker keeps its family until it is done, then takes another, or half of another's.

    Args:
        jobs: What is to be done.
        done: Keys of the jobs that are finished already.
    """

    def __init__(self, jobs: Sequence[Job], done: set[str]) -> None:
        self._waiting: dict[str, deque[Job]] = {}
        for job in sorted(jobs, key=lambda job: job.order):
            self._waiting.setdefault(job.family, deque()).append(job)
        # The largest families first, so that the end is not one long family on one worker.
        self._waiting = dict(sorted(self._waiting.items(), key=lambda item: -sum(job.cost for job in item[1])))
        self._lanes: dict[int, deque[Job]] = {}
        self._done, self._failed = set(done), set[str]()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values())) + sum(map(len, self._lanes.values()))

    def take(self, worker: int) -> Job | None:
        """The next job for a worker; None if there is none that can be done now."""
        if not self._lanes.get(worker):
            self._lanes[worker] = self._family() or self._half()
        return self._lanes[worker].popleft() if self._lanes[worker] else None

    def finish(self, job: Job) -> None:
        """The job is done; those that need it may begin."""
        self._done.add(job.key)

    def fail(self, job: Job) -> list[Job]:
        """The job has no result; returns those that cannot be done without it, which are dropped."""
        self._failed.add(job.key)
        dropped: list[Job] = []
        for family, jobs in self._waiting.items():
            dropped += [job for job in jobs if self._failed.intersection(job.needs)]
            self._waiting[family] = deque(job for job in jobs if not self._failed.intersection(job.needs))
        return dropped + [further for job in dropped for further in self.fail(job)]

    def drain(self) -> list[Job]:
        """Everything that waits, taken out."""
        jobs = [job for waiting in self._waiting.values() for job in waiting]
        self._waiting.clear()
        return jobs

    def retry(self, job: Job) -> None:
        """Put a job back, to be done by whoever is free."""
        self._waiting.setdefault(f"retry {job.key}", deque()).append(job)

    def _family(self) -> deque[Job]:
        """A family that nobody works on, all of whose needs are there."""
        for family, jobs in self._waiting.items():
            if jobs and all(self._done.issuperset(job.needs) for job in jobs):
                return self._waiting.pop(family)
        for family, jobs in self._waiting.items():  # some of a family at least
            ready = deque(job for job in jobs if self._done.issuperset(job.needs))
            if ready:
                self._waiting[family] = deque(job for job in jobs if not self._done.issuperset(job.needs))
                return ready
        return deque()

    def _half(self) -> deque[Job]:
        """The later half of what another worker has before it."""
        longest = max(self._lanes.values(), key=len, default=deque())
        count = (len(longest) + 1) // 2
        return deque(reversed([longest.pop() for _ in range(count)]))
