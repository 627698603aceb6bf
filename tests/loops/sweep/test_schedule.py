"""Who does what next, with workers that are only pretended."""

import random
import sqlite3
from pathlib import Path

import pytest

from taskarith_fast.errors import DataError
from taskarith_fast.loops.sweep.clock import Clock
from taskarith_fast.loops.sweep.execute import Sweep, correct_of
from taskarith_fast.loops.sweep.job import Job, Judge, Outcome
from taskarith_fast.loops.sweep.schedule import Schedule
from taskarith_fast.loops.sweep.store import Store
from taskarith_fast.progress import Stage


def job(name, family="f", order=(), needs=(), cost=1.0):
    work = Judge(("t",), (Path("head"),), (Path("model"),), "ties")
    return Job("merge", {"tasks": ["t"]}, {"name": name, "images": ["val", 9]}, work, family, order, needs, cost)


def names(jobs):
    return [found and found.identity["name"] for found in jobs]


def test_a_family_stays_with_one_worker_in_order():
    jobs = [job(f"{f}{i}", f, (i,)) for i in (2, 0, 1) for f in "ab"]
    schedule = Schedule(jobs, set())
    taken = [schedule.take(worker) for _ in range(3) for worker in (0, 1)]
    assert names(taken) == ["a0", "b0", "a1", "b1", "a2", "b2"] or names(taken) == ["b0", "a0", "b1", "a1", "b2", "a2"]


def test_the_costliest_family_comes_first():
    schedule = Schedule([job("small", "s"), job("big", "b", cost=9.0)], set())
    assert names([schedule.take(0)]) == ["big"]


def test_an_idle_worker_takes_the_later_half():
    schedule = Schedule([job(i, order=(i,)) for i in range(9)], set())
    first = schedule.take(0)
    assert names([first]) == [0]
    assert names(schedule.take(1) for _ in range(4)) == [5, 6, 7, 8]
    assert names(schedule.take(0) for _ in range(4)) == [1, 2, 3, 4]
    assert schedule.take(0) is None and schedule.take(1) is None and len(schedule) == 0


def test_a_job_waits_for_what_it_needs():
    first = job("first", "a")
    second = job("second", "b", needs=(first.key,))
    schedule = Schedule([second, first], set())
    assert names([schedule.take(0), schedule.take(1)]) == ["first", None]
    schedule.finish(first)
    assert names([schedule.take(1)]) == ["second"]


def test_what_needs_a_failed_job_is_dropped_with_all_that_follows():
    first = job("first", "a")
    second = job("second", "b", needs=(first.key,))
    third = job("third", "c", needs=(second.key,))
    schedule = Schedule([first, second, third], set())
    schedule.take(0)
    assert names(schedule.fail(first)) == ["second", "third"]
    assert len(schedule) == 0


class Pretended:
    """Workers whose results come in a random order; some die."""

    def __init__(self, workers, seed=0, deaths=(), errors=(), full=()):
        self.busy, self.workers, self.random = {}, workers, random.Random(seed)
        self.deaths, self.errors, self.full = list(deaths), errors, full
        self.before, self.log = lambda worker: None, []

    def idle(self):
        return [w for w in range(self.workers) if w not in self.busy]

    def submit(self, worker, job):
        self.before(worker)
        self.busy[worker] = job
        self.log.append(job.identity["name"])

    def wait(self):
        worker = self.random.choice(sorted(self.busy))
        job = self.busy.pop(worker)
        name = job.identity["name"]
        if name in self.deaths:
            self.deaths.remove(name)
            return [(worker, None)]
        if name in self.errors or name in self.full:
            return [(worker, Outcome(job.key, error=f"no {name}", disk_full=name in self.full))]
        begin, end = (round(9 * share) for share in job.share)
        return [(worker, Outcome(job.key, {"t": bytes(i % 2 for i in range(begin, end))}))]

    def close(self):
        pass


def swept(path, pool, jobs):
    with Store(path / "s.sqlite") as store:
        sweep = Sweep(store, pool, Clock(Stage(), lines=False))
        sweep.run(jobs)
        return {row.identity["name"]: row for row in sweep.rows.values()}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_is_done_once(workers, tmp_path):
    jobs = [job(f"{f}{i}", f, (i,)) for f in "abc" for i in range(7)]
    pool = Pretended(workers)
    rows = swept(tmp_path, pool, jobs)
    assert sorted(pool.log) == sorted(rows) == sorted(j.identity["name"] for j in jobs)
    assert all(row.results == {"t": (4, 9)} for row in rows.values())


def test_a_worker_gets_a_job_only_when_its_last_result_is_in_the_database(tmp_path):
    """So a kill of everything costs at most one point a worker."""
    pool, given = Pretended(3), {}

    def before(worker):
        if worker in given:
            other = sqlite3.connect(tmp_path / "s.sqlite")
            assert other.execute("SELECT state FROM point WHERE key = ?", [given[worker]]).fetchall() == [("done",)]
            other.close()

    real = pool.submit

    def submit(worker, job):
        before(worker)
        given[worker] = job.key
        real(worker, job)

    pool.submit = submit
    swept(tmp_path, pool, [job(i, order=(i,)) for i in range(20)])
    assert len(given) == 3


def test_finished_jobs_are_not_done_again(tmp_path):
    jobs = [job(i, order=(i,)) for i in range(6)]
    swept(tmp_path, Pretended(2), jobs[:4])
    pool = Pretended(2)
    assert len(swept(tmp_path, pool, jobs)) == 6
    assert sorted(pool.log) == [4, 5]


def test_a_worker_that_dies_loses_its_point_not_the_sweep(tmp_path):
    pool = Pretended(2, deaths=[3])
    rows = swept(tmp_path, pool, [job(i, order=(i,)) for i in range(6)])
    assert all(row.state == "done" for row in rows.values()) and len(rows) == 6
    assert pool.log.count(3) == 2


def test_a_point_that_kills_its_workers_fails_alone_and_is_tried_again_later(tmp_path):
    jobs = [job(i, order=(i,)) for i in range(6)]
    rows = swept(tmp_path, Pretended(2, deaths=[3, 3]), jobs)
    assert [name for name, row in rows.items() if row.state == "failed"] == [3]
    assert rows[3].error == "its worker died each time, perhaps for lack of memory"
    pool = Pretended(2)
    assert swept(tmp_path, pool, jobs)[3].state == "done"
    assert pool.log == [3]


def test_an_error_fails_its_point_and_those_that_need_it(tmp_path):
    first = job("first", "a")
    rows = swept(
        tmp_path, Pretended(1, errors=["first"]), [first, job("second", "b", needs=(first.key,)), job("other")]
    )
    assert {name: row.state for name, row in rows.items()} == {"first": "failed", "second": "failed", "other": "done"}
    assert rows["first"].error == "no first" and "it needs a point that failed" in rows["second"].error


def test_what_needs_a_point_that_failed_in_an_earlier_batch_fails_too(tmp_path):
    first = job("first", "a")
    with Store(tmp_path / "s.sqlite") as store:
        sweep = Sweep(store, Pretended(1, errors=["first"]), Clock(Stage(), lines=False))
        sweep.run([first])
        sweep.run([job("second", "b", needs=(first.key,)), job("other")])
        states = {row.identity["name"]: row.state for row in sweep.rows.values()}
    assert states == {"first": "failed", "second": "failed", "other": "done"}


def test_a_full_disk_stops_the_sweep_and_keeps_what_is_there(tmp_path):
    jobs = [job(i, order=(i,)) for i in range(6)]
    with pytest.raises(DataError, match="no 3; finished points are kept"):
        swept(tmp_path, Pretended(1, full=[3]), jobs)
    pool = Pretended(1)
    swept(tmp_path, pool, jobs)
    assert pool.log == [3, 4, 5]


def test_a_job_goes_on_where_its_first_images_end(tmp_path):
    import dataclasses

    whole = job("a")
    part = dataclasses.replace(whole, share=(0.0, 1 / 3))
    assert swept(tmp_path, Pretended(1), [part])["a"].results == {"t": (1, 3)}
    pool = Pretended(1)
    row = swept(tmp_path, pool, [whole])["a"]
    assert row.results == {"t": (4, 9)} and row.share == 1
    assert correct_of(row)["t"].tolist() == [i % 2 == 1 for i in range(9)]
