"""What needs a package that is not there costs one line; with it, it works."""

import sys

import pytest

from taskarith_fast.errors import BackendError
from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.loops.sweep.run import sweep
from tests.loops.sweep.tiny_sweep import IMAGES, write_models, write_sweep, write_tasks
from tests.loops.tiny import vit

WIDE = """
[optuna]
trials = 12
[[merge]]
method = "ties"
density = [0.1, 0.2, 0.5, 0.9]
scale = {start = 0.0, stop = 2.0, count = 21}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit())
    write_tasks(tmp_path)
    write_models(tmp_path, vit())
    return tmp_path


def test_ray_that_is_not_installed_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"--ray needs the package ray: pip install 'taskarith_fast\[ray\]'"):
        sweep(write_sweep(folder), ray="auto")
    assert not (folder / "sweep").exists()


def test_optuna_that_is_not_installed_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BackendError, match=r"optuna. needs the package optuna: pip install 'taskarith_fast\[optuna\]'"):
        sweep(write_sweep(folder, WIDE), in_process=True)
    assert not (folder / "sweep").exists()


def test_optuna_visits_as_many_points_as_it_is_given_trials(folder):
    pytest.importorskip("optuna", reason="optuna is not installed")
    path = write_sweep(folder, WIDE)
    chosen = sweep(path, in_process=True, device="cpu")
    merges = [r for r in chosen.records if r["kind"] == "merge"]
    assert 1 < len(merges) <= 12
    whole = write_sweep(folder, WIDE.replace("[optuna]\ntrials = 12\n", ""), head='output = "whole"')
    every = {r["key"]: r["mean"] for r in sweep(whole, in_process=True, device="cpu").records if r["kind"] == "merge"}
    assert len(every) == 84
    # Its points are points of the grid, and its best is not far from the grid's best.
    assert all(every[r["key"]] == r["mean"] for r in merges)
    assert chosen.best()[0]["mean"] >= max(every.values()) - 4 / (2 * IMAGES)


def test_optuna_goes_on_from_the_database(folder):
    pytest.importorskip("optuna", reason="optuna is not installed")
    path = write_sweep(folder, WIDE)
    first = sweep(path, in_process=True, device="cpu")
    again = sweep(path, in_process=True, device="cpu")
    assert first.records == again.records
