"""`taskarith sweep`: what it prints, and what a user's mistake costs."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from taskarith_fast.cli import app
from taskarith_fast.loops.files import EncoderChoice
from tests.loops.sweep.tiny_sweep import POINTS, write_models, write_sweep, write_tasks
from tests.loops.tiny import vit


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit())
    write_tasks(tmp_path)
    write_models(tmp_path, vit())
    return write_sweep(tmp_path)


def run(*words, exit_code=0):
    done = CliRunner().invoke(app, ["sweep", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == exit_code, done.output
    return done.stdout


@pytest.fixture
def in_process(monkeypatch):
    """Workers that see this process's tiny encoder."""
    from taskarith_fast.loops.sweep import run as module
    from taskarith_fast.loops.sweep.pool import HerePool

    monkeypatch.setattr(module, "LocalPool", lambda setup, devices: HerePool(setup, devices[0]))


def test_the_best_of_each_method_is_printed(path, in_process):
    lines = run(path, "--device", "cpu", "--export", path.parent / "points.csv").splitlines()
    assert sorted(line.split(",")[1].split()[-1] for line in lines[:3]) == ["average", "cart", "ties"]
    assert lines[3] == f"{POINTS + 2} points in {path.parent / 'sweep' / 'sweep.sqlite'}"
    assert (path.parent / "points.csv").read_text().startswith("key,kind,state,method")


def test_a_plan_is_printed_and_nothing_written(path):
    assert "merges share the work of 5 directions, in 3 families" in run(path, "--plan")
    assert not (path.parent / "sweep").exists()


def test_a_page_is_written_that_loads_nothing(path, in_process):
    run(path, "--device", "cpu", "--report")
    page = (path.parent / "sweep" / "report.html").read_text()
    assert page.count("<tr>") == 1 + 3 + 1 + POINTS
    assert page.count("<polyline") == 4  # two densities, two ranks
    assert "http" not in page.replace("http-equiv", "") and "src=" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_failed_points_give_exit_code_1(path, in_process, monkeypatch):
    from taskarith_fast.loops.sweep import worker

    def failing(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(worker, "direction_of", failing)
    assert "6 points failed, the first: MemoryError: no room" in run(path, "--device", "cpu", exit_code=1)


@pytest.mark.parametrize("words", ["nothing.toml", "sweep.toml --export a.txt", "sweep.toml --device tpu"])
def test_a_mistake_costs_one_line_and_exit_code_2(words, path):
    command = [sys.executable, "-m", "taskarith_fast", "sweep", *words.split()]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
