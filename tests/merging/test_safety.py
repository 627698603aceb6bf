"""Killed at any moment or on a full disk: the output is absent, old, or complete, and no debris stays."""

import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import taskarith_fast as ta
from taskarith_fast.checkpoint import commit
from taskarith_fast.errors import CheckpointError
from tests.merging.stream_cases import assert_same_bytes, in_memory, make_models, read_output, write_models

_RUN = """
import sys
from taskarith_fast.merging import merge_files
base, *models = sys.argv[3].split(",")
sharded = {} if sys.argv[2].endswith(".safetensors") else {"shard_size": 400_000}
print("ready", flush=True)
for _ in range(1000):
    merge_files(base, models, sys.argv[2], method=sys.argv[1], overwrite=True, memory="1MB", **sharded)
    print("done", flush=True)
"""


@pytest.fixture
def job(tmp_path):
    states = make_models([(300, 257), (400, 300), (31,)], 3)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return states, write_models(states, tmp_path / "in"), tmp_path / "out"


def _start(method, output, paths):
    args = [sys.executable, "-c", _RUN, method, str(output), ",".join(map(str, paths))]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def _kill_and_check(process, delay, output, states, paths, expected):
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if output.exists():
        assert_same_bytes(read_output(output), expected)
    # What is left is hidden, and the next start removes it.
    assert all(p == output or p.name.startswith(f".{output.name}.taskarith-") for p in output.parent.iterdir())
    ta.merge_files(paths[0], paths[1:], output, method="ties", overwrite=True)
    assert [p.name for p in output.parent.iterdir()] == [output.name]
    assert_same_bytes(read_output(output), expected)


@pytest.mark.parametrize("name", ["o.safetensors", "model"])
def test_a_killed_merge_leaves_the_old_output_or_the_new_one(name, job):
    states, paths, folder = job
    expected = in_memory(states, "ties")
    _kill_and_check(_start("ties", folder / name, paths), 0.04, folder / name, states, paths, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["o.safetensors", "model"])
def test_a_merge_killed_at_many_instants(name, job):
    states, paths, folder = job
    expected, draw = in_memory(states, "ties"), random.Random(0)
    for _ in range(50):
        delay = draw.uniform(0, 0.3)
        _kill_and_check(_start("ties", folder / name, paths), delay, folder / name, states, paths, expected)


def _full_after(limit):
    """pwrite on a disk with room for `limit` bytes."""
    left, real = [limit], os.pwrite

    def pwrite(handle, data, offset):
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        data = memoryview(data)[: left[0]]
        left[0] -= len(data)
        return real(handle, data, offset)

    return pwrite


@pytest.mark.parametrize("directory", [False, True])
def test_a_full_disk_leaves_nothing_new(directory, job, monkeypatch):
    states, paths, folder = job
    output = folder / ("model" if directory else "o.safetensors")
    parameters = {"method": "ties", "memory": "1MB", **({"shard_size": 400_000} if directory else {})}
    size = sum(t.nbytes for t in states[0].values())
    for i in range(15):
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", _full_after(i * size // 14))
            with pytest.raises(CheckpointError, match=r"cannot be written .No space left on device"):
                ta.merge_files(paths[0], paths[1:], output, **parameters)
        assert list(folder.iterdir()) == []
    ta.merge_files(paths[0], paths[1:], output, **parameters)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setattr(os, "pwrite", _full_after(size // 2))
    with pytest.raises(CheckpointError, match="No space"):
        ta.merge_files(paths[0], paths[1:], output, overwrite=True, **parameters)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_file_larger_than_the_system_allows_is_refused_at_the_start(job):
    _, paths, folder = job
    code = (
        "import resource, signal, sys, taskarith_fast as ta\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: ta.merge_files(sys.argv[2], sys.argv[3:], sys.argv[1])\n"
        "except ta.TaskarithError as error: print(error)"
    )
    args = [sys.executable, "-c", code, str(folder / "o.safetensors"), *map(str, paths)]
    assert "cannot be written (File too large)" in subprocess.check_output(args, text=True)
    assert list(folder.iterdir()) == []


def test_a_failed_flush_is_an_error_and_leaves_nothing(job, monkeypatch):
    _, paths, folder = job

    def broken(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(CheckpointError, match="Input/output error"):
        ta.merge_files(paths[0], paths[1:], folder / "o.safetensors")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("when", ["merge", "wait"])
def test_an_interrupt_leaves_nothing(when, job, monkeypatch):
    _, paths, folder = job

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    where = {"merge": "streaming.FunctionPasses.merge", "wait": "hashing.Hashes.wait"}[when]
    monkeypatch.setattr(f"taskarith_fast.merging.{where}", stop)
    with pytest.raises(KeyboardInterrupt):
        ta.merge_files(paths[0], paths[1:], folder / "o.safetensors")
    assert list(folder.iterdir()) == []


def test_a_running_merge_is_not_taken_for_debris(tmp_path):
    output = tmp_path / "o.safetensors"
    with commit.staged(output, directory=False) as mine:
        assert commit.remove_debris(output) == [] and mine.exists()
        mine.write_text("mine")
    assert output.read_text() == "mine"


def test_debris_of_another_output_is_left_alone(tmp_path):
    other = tmp_path / ".other.taskarith-1.tmp"
    other.write_text("x")
    assert commit.remove_debris(tmp_path / "o") == [] and other.exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_whole(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(commit, "_exchange", lambda a, b: False)
    output = tmp_path / "model"
    for text in ("one", "two"):
        with commit.staged(output, directory=True) as target:
            (target / text).write_text(text)
    assert [p.name for p in output.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [output]


def test_a_directory_lost_between_two_renames_comes_back(tmp_path):
    old = tmp_path / ".model.taskarith-x.old"
    old.mkdir()
    (old / "weights").write_text("years of work")
    assert commit.remove_debris(tmp_path / "model") == []
    assert (tmp_path / "model" / "weights").read_text() == "years of work"
