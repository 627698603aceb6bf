"""Worker processes: the same numbers, one copy of the models, kills that cost little."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from taskarith_fast.errors import ArgumentError, BackendError
from taskarith_fast.loops.sweep.pool import LocalPool, devices_of
from taskarith_fast.loops.sweep.run import DATABASE, plan_sweep, sweep
from tests.loops.sweep.tiny_sweep import POINTS, make_folder, values, write_sweep

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def expected(path):
    """The table of an undisturbed sweep in one process."""
    return sweep(path, in_process=True, device="cpu").records


def elsewhere(path, name):
    """The same sweep into another folder."""
    return write_sweep(path.parent, head=f'output = "{name}"')


def test_two_workers_find_what_one_process_finds(path, expected):
    found = sweep(elsewhere(path, "two"), workers=2, device="cpu").records
    assert np.array_equal(values(found, "mean", "accuracy.low"), values(expected, "mean", "accuracy.low"))


def _rows(folder):
    """Key -> seconds of every row, which differ whenever a point is computed again."""
    if not (folder / DATABASE).exists():
        return {}
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        try:
            return dict(database.execute("SELECT key, seconds FROM point"))
        except sqlite3.OperationalError:  # the table is not there yet
            return {}


def _descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [p for child in children for p in _descendants(child)]


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_sweep_keeps_its_points_and_goes_on(path, expected):
    file = elsewhere(path, "killed")
    folder = file.parent / "killed"
    command = [sys.executable, "-m", "taskarith_fast", "sweep", str(file), "--workers", "2", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(lambda: len(_rows(folder)) >= 3)
    others = _descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = _rows(folder)
    assert 3 <= len(kept) < POINTS + 2
    # Its workers do not live on: a new run may begin the same points.
    _wait_for(lambda: not any(_runs(pid) for pid in others))
    found = sweep(file, workers=2, device="cpu").records
    assert np.array_equal(values(found, "mean"), values(expected, "mean"))
    after = _rows(folder)
    assert {key: after[key] for key in kept} == kept


@pytest.fixture
def pool(path):
    plan = plan_sweep(path)
    plan.inputs.write_shared(plan.folder / "shared")
    with closing(LocalPool(plan.setup, ["cpu", "cpu"])) as pool:
        yield pool, [job for job in plan.jobs if job.kind == "merge"]


def _result(pool, worker):
    """The next result of one worker."""
    while True:
        for found, outcome in pool.wait():
            if found == worker:
                return outcome


def test_a_killed_worker_is_reported_and_replaced(pool):
    pool, jobs = pool
    pool.submit(0, jobs[0])
    assert _result(pool, 0).error is None
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGSTOP)  # so that it cannot finish before it dies
    pool.submit(0, jobs[1])
    os.kill(pid, signal.SIGKILL)
    assert _result(pool, 0) is None
    pool.submit(0, jobs[1])
    assert _result(pool, 0).error is None
    assert pool.pids() != [pid]


def _mapped(pid, name):
    """Kilobytes of a file's pages in a process: all, and those that are its own copies."""
    total = own = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(name)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
        elif inside and line.startswith("Anonymous:"):
            own += int(line.split()[1])
    return total, own


def test_workers_share_the_pages_of_the_models(pool):
    pool, jobs = pool
    for worker in (0, 1):
        pool.submit(worker, jobs[0])
    assert _result(pool, 0).error is None
    if pool._busy:
        assert _result(pool, 1).error is None
    for pid in pool.pids():
        for file in ("low-model.safetensors", "high-model.safetensors"):
            total, own = _mapped(pid, file)
            assert total > 1000 and own == 0


def test_devices():
    assert devices_of("cpu", 3) == ["cpu"] * 3
    assert devices_of("cpu", 0) == ["cpu"] * len(os.sched_getaffinity(0))
    with pytest.raises(ArgumentError, match="workers must be at least 0, got -1"):
        devices_of("cpu", -1)


def test_gpus_are_shared_out(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("auto", 0) == ["cuda:0", "cuda:1"]
    assert devices_of("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_of("cuda:1", 0) == ["cuda:1"]
    with pytest.raises(BackendError, match="there are 2 CUDA devices"):
        devices_of("cuda:2", 0)
