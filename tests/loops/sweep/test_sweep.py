"""Sweeps in one process, on a tiny encoder: the same numbers as merging and evaluating point by point."""

import csv
import json
import subprocess

import numpy as np
import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.data import SubsetSplit, find_task
from taskarith_fast.errors import ArgumentError, BackendError, DataError
from taskarith_fast.loops.evaluate import StateEvaluator, evaluate, mean_accuracy, normalized_accuracy
from taskarith_fast.loops.files import EncoderChoice, read_head
from taskarith_fast.loops.sweep import run
from taskarith_fast.loops.sweep.run import plan_sweep, sweep
from taskarith_fast.loops.sweep.store import Store
from tests.loops.sweep.tiny_sweep import GRID, IMAGES, NAMES, POINTS, values, write_models, write_sweep, write_tasks
from tests.loops.tiny import vit


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_tasks(folder)
    write_models(folder, vit())
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit())
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def here(path, **options):
    return sweep(path, in_process=True, device="cpu", **options)


def computed(monkeypatch):
    """Labels of the jobs that workers do from now on."""
    from taskarith_fast.loops.sweep.worker import Worker

    log, real = [], Worker.run

    def run(self, job):
        log.append(job)
        return real(self, job)

    monkeypatch.setattr(Worker, "run", run)
    return log


def test_every_point_has_the_accuracy_of_its_merge(folder):
    records = here(write_sweep(folder)).records
    base = {name: t.detach() for name, t in vit().state_dict().items()}
    models = [ta.load_state_dict(folder / f"{name}-model.safetensors") for name in NAMES]
    tasks = [find_task(str(folder / f"{name}.npz")) for name in NAMES]
    heads = {t.name: read_head(folder / f"{t.name}-head.safetensors", t) for t in tasks}
    splits = {t.name: t.splits["val"] for t in tasks}
    judge = StateEvaluator(vit(), heads, splits)
    alone = {n: judge(dict(m))[n] for n, m in zip(NAMES, models, strict=True)}
    merges = [r for r in records if r["kind"] == "merge"]
    assert len(merges) == POINTS and all(r["state"] == "done" for r in records)
    differing = 0
    for record in merges:
        known = ("density", "scale", "rank_ratio") if record["method"] != "average" else ()
        parameters = {name: record[name] for name in known if record[name] is not None}
        found = judge(ta.merge(base, models, record["method"], **parameters))
        assert record["mean"] == pytest.approx(mean_accuracy(found))
        assert record["normalized"] == pytest.approx(normalized_accuracy(found, alone))
        assert {n: record[f"accuracy.{n}"] for n in NAMES} == {n: e.accuracy for n, e in found.items()}
        differing += record["mean"] != merges[0]["mean"]
    assert differing  # else nothing was told apart


def test_a_second_run_computes_nothing(folder, monkeypatch):
    path = write_sweep(folder)
    first = here(path)
    log = computed(monkeypatch)
    assert here(path).records == first.records
    assert log == []


def test_a_wider_grid_computes_what_is_new(folder, monkeypatch):
    path = write_sweep(folder)
    first = here(path)
    log = computed(monkeypatch)
    wider = GRID.replace("scale = [0.3, 0.8, 1.2]", "scale = [0.3, 0.8, 1.2, 2.0]")
    second = here(write_sweep(folder, wider))
    assert [(j.work.method, j.work.parameters["scale"]) for j in log] == [("ties", 2.0)] * 2
    kept = {r["key"]: r for r in second.records}
    assert len(kept) == POINTS + 2 + 2
    assert all(kept[r["key"]]["mean"] == r["mean"] for r in first.records)


@pytest.mark.parametrize("change", ["model", "head", "images", "encoder"])
def test_a_changed_input_computes_its_points_again(change, folder, monkeypatch):
    path = write_sweep(folder)
    here(path)
    log = computed(monkeypatch)
    if change == "model":
        state = {n: t + 0.01 for n, t in ta.load_state_dict(folder / "low-model.safetensors").items()}
        (folder / "low-model.safetensors").unlink()
        ta.save_state_dict(state, folder / "low-model.safetensors")
    elif change == "head":
        state = ta.load_state_dict(folder / "low-head.safetensors")
        doubled = {n: 2 * t for n, t in state.items()}
        (folder / "low-head.safetensors").unlink()
        ta.save_state_dict(doubled, folder / "low-head.safetensors", metadata=state.metadata)
    elif change == "images":
        (folder / "low.npz").unlink()
        (folder / "low.npz").write_bytes((folder / "high.npz").read_bytes())
        (folder / "low-head.safetensors").unlink()
        (folder / "low-head.safetensors").write_bytes((folder / "high-head.safetensors").read_bytes())
    else:
        monkeypatch.setattr(EncoderChoice, "load", lambda self: vit(seed=1))
    here(path)
    assert len([j for j in log if j.kind == "merge"]) == POINTS
    assert len([j for j in log if j.kind == "single"]) == (2 if change == "encoder" else 1)


def test_directions_and_decompositions_are_made_once(folder, monkeypatch):
    from taskarith_fast.loops.sweep import worker

    made = {"directions": 0, "factors": 0}

    def counted(name, real):
        def call(*args, **kwargs):
            made[name] += 1
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(worker, "direction_of", counted("directions", worker.direction_of))
    monkeypatch.setattr(worker.CartFactors, "__init__", counted("factors", worker.CartFactors.__init__))
    here(write_sweep(folder))
    assert made == {"directions": 2, "factors": 1}
    assert not list((folder / "sweep" / "shared").glob("factors-*"))


def test_sets_of_tasks_and_seeds(folder):
    rest = '[[merge]]\nmethod = "dare"\n[[merge]]\nmethod = "task_arithmetic"\nscale = [0.5]\n'
    records = here(write_sweep(folder, rest, head="seeds = [0, 1]\nsubset_sizes = [1, 2]")).records
    merges = [(r["method"], r["tasks"], r["seed"]) for r in records if r["kind"] == "merge"]
    sets = ("low", "high", "low+high")
    expected = [("task_arithmetic", s, None) for s in sets] + [("dare", s, seed) for s in sets for seed in (0, 1)]
    assert sorted(merges, key=str) == sorted(expected, key=str)


def test_a_task_is_forgotten_while_all_are_judged(folder):
    rest = '[[merge]]\nmethod = "task_arithmetic"\nscale = [-1.0, 0.0]\njudge = "all"\n'
    records = here(write_sweep(folder, rest, head="subset_sizes = [1]")).records
    merges = {(r["tasks"], r["scale"]): r for r in records if r["kind"] == "merge"}
    assert len(merges) == 4
    # At scale 0 both are the encoder itself; elsewhere they are edited by one task, and judged on both.
    assert merges["low", 0.0]["mean"] == merges["high", 0.0]["mean"]
    base = {name: t.detach() for name, t in vit().state_dict().items()}
    encoder = vit()
    encoder.load_state_dict(ta.merge(base, [ta.load_state_dict(folder / "low-model.safetensors")], scale=-1.0))
    for name in NAMES:
        task = find_task(str(folder / f"{name}.npz"))
        head = read_head(folder / f"{name}-head.safetensors", task)
        found = evaluate(encoder, head, task.splits["val"]).accuracy
        assert merges["low", -1.0][f"accuracy.{name}"] == found
        assert merges["low", -1.0]["normalized"] is not None


def test_checkpoints_by_seed(folder):
    for name in NAMES:
        state = dict(ta.load_state_dict(folder / f"{name}-model.safetensors"))
        for seed in (3, 4):
            ta.save_state_dict({n: t + seed / 50 for n, t in state.items()}, folder / f"{name}-{seed}.safetensors")
    path = write_sweep(folder, '[[merge]]\nmethod = "average"\n', head="seeds = [3, 4]")
    path.write_text(path.read_text().replace("-model.safetensors", "-{seed}.safetensors"))
    records = here(path).records
    assert sorted(r["seed"] for r in records if r["kind"] == "merge") == [3, 4]
    assert sorted(r["seed"] for r in records if r["kind"] == "single") == [3, 3, 4, 4]


def test_pytorch_files_and_a_base_of_its_own(folder):
    base = {n: t + 0.05 for n, t in vit().state_dict().items()}
    torch.save(base, folder / "base.pt")
    torch.save(dict(ta.load_state_dict(folder / "low-model.safetensors")), folder / "low-model.pt")
    path = write_sweep(folder, '[[merge]]\nmethod = "task_arithmetic"\nscale = [0.0, 0.5]\n', head='base = "base.pt"')
    path.write_text(path.read_text().replace("low-model.safetensors", "low-model.pt"))
    records = here(path).records
    task = find_task(str(folder / "low.npz"))
    encoder = vit()
    encoder.load_state_dict(base)
    head = read_head(folder / "low-head.safetensors", task)
    at_zero = next(r for r in records if r["kind"] == "merge" and r["scale"] == 0)
    assert at_zero["accuracy.low"] == evaluate(encoder, head, task.splits["val"]).accuracy


def test_narrow_checkpoints_are_merged_as_they_are(folder):
    narrow = {n: t.bfloat16() for n, t in vit().state_dict().items()}
    ta.save_state_dict(narrow, folder / "base.safetensors")
    for name in NAMES:
        state = ta.load_state_dict(folder / f"{name}-model.safetensors")
        ta.save_state_dict({n: t.bfloat16() for n, t in state.items()}, folder / f"{name}-narrow.safetensors")
    path = write_sweep(folder, head='base = "base.safetensors"')
    path.write_text(path.read_text().replace("-model.safetensors", "-narrow.safetensors"))
    records = here(path).records
    assert sum(r["state"] == "done" for r in records) == POINTS + 2


def test_fewer_images_are_the_same_random_ones_for_all(folder):
    records = here(write_sweep(folder, '[[merge]]\nmethod = "average"\n', head="images = 10")).records
    merge = next(r for r in records if r["kind"] == "merge")
    state = ta.merge(
        vit().state_dict(), [ta.load_state_dict(folder / f"{n}-model.safetensors") for n in NAMES], "average"
    )
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))[:10]
    encoder = vit()
    encoder.load_state_dict(state)
    for name in NAMES:
        task = find_task(str(folder / f"{name}.npz"))
        head = read_head(folder / f"{name}-head.safetensors", task)
        assert merge[f"accuracy.{name}"] == evaluate(encoder, head, SubsetSplit(task.splits["val"], order)).accuracy


def test_halving_judges_few_on_all_images(folder, monkeypatch):
    path = write_sweep(folder, "\n[halving]\neta = 3\nrungs = 3\n" + GRID)
    log = computed(monkeypatch)
    result = here(path)
    merges = [r for r in result.records if r["kind"] == "merge"]
    shares = sorted(round(r["share"], 3) for r in merges)
    assert shares == [0.111] * (POINTS - 4) + [0.333] * 3 + [1.0]
    whole = sum(j.cost for j in log if j.kind == "merge")
    assert whole == pytest.approx(2 * IMAGES * (POINTS / 9 + 4 * 2 / 9 + 2 / 3))
    # What is left is the best of the first rung's best: no point that was stopped did better on the same images.
    assert len(result.best()) == 1 and result.best()[0]["share"] == 1


def test_without_halving_stopped_points_go_on(folder, monkeypatch):
    halved = here(write_sweep(folder, "\n[halving]\neta = 3\nrungs = 3\n" + GRID))
    log = computed(monkeypatch)
    whole = here(write_sweep(folder))
    assert {round(j.share[0], 3) for j in log} == {0.111, 0.333}
    (folder / "fresh").mkdir()
    fresh = here(write_sweep(folder, head='output = "fresh"'))
    assert np.array_equal(values(whole.records, "mean"), values(fresh.records, "mean"))
    assert len(halved.records) == len(whole.records)


def test_the_table_is_exported(folder):
    result = here(write_sweep(folder), export=folder / "points.csv")
    rows = list(csv.DictReader((folder / "points.csv").open()))
    assert [row["key"] for row in rows] == [r["key"] for r in result.records]
    assert [float(row["mean"]) for row in rows] == [r["mean"] for r in result.records]


def test_parquet_needs_pyarrow(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(BackendError, match="export to Parquet needs the package pyarrow"):
        here(write_sweep(folder), export=folder / "points.parquet")
    assert not (folder / "sweep").exists()


def test_parquet_holds_the_table(folder):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    result = here(write_sweep(folder), export=folder / "points.parquet")
    table = parquet.read_table(folder / "points.parquet").to_pylist()
    assert [row["mean"] for row in table] == [r["mean"] for r in result.records]


def test_a_plan_writes_nothing(folder):
    lines = plan_sweep(write_sweep(folder)).lines()
    assert lines[0].split() == ["single", "2", "points"] and lines[1].split() == ["merge", str(POINTS), "points"]
    assert "merges share the work of 5 directions, in 3 families" in lines
    assert not (folder / "sweep").exists()


def test_a_disk_without_room_is_refused_before_any_work(folder, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    log = computed(monkeypatch)
    with pytest.raises(DataError, match=r"the sweep writes up to 0\.07 GB, the disk has 0\.00 GB free"):
        here(write_sweep(folder))
    assert log == []


def test_two_sweeps_do_not_write_to_one_folder(folder):
    from filelock import FileLock

    (folder / "sweep").mkdir()
    with FileLock(folder / "sweep" / ".lock"), pytest.raises(ArgumentError, match="another sweep is writing there"):
        here(write_sweep(folder))


def test_a_point_that_fails_is_a_row_with_its_reason(folder, monkeypatch):
    from taskarith_fast.loops.sweep import worker

    real = worker.direction_of

    def failing(base, models, method, **parameters):
        if parameters.get("density") == 0.5:
            raise MemoryError("no room\nfor this")
        return real(base, models, method, **parameters)

    monkeypatch.setattr(worker, "direction_of", failing)
    path = write_sweep(folder)
    result = here(path)
    failed = [r for r in result.records if r["state"] == "failed"]
    assert result.failed == 3 and {r["error"] for r in failed} == {"MemoryError: no room"}
    assert any("3 points failed" in line for line in run.summary_lines(result))
    monkeypatch.setattr(worker, "direction_of", real)
    assert here(path).failed == 0


def test_configurations_are_kept_whole(folder):
    here(write_sweep(folder))
    import sqlite3

    database = sqlite3.connect(folder / "sweep" / run.DATABASE)
    kinds = {}
    for kind, identity in database.execute("SELECT kind, identity FROM point"):
        kinds.setdefault(kind, json.loads(identity))
    database.close()
    assert set(kinds["merge"]) == {"encoder", "tasks", "images", "precision", "method", "parameters"}
    assert kinds["merge"]["images"] == ["val", IMAGES, IMAGES]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_on_a_full_disk_finished_points_are_kept_and_the_sweep_goes_on(folder, small_disk, monkeypatch):
    monkeypatch.setattr(run, "_check_disk", lambda plan: None)
    scales = GRID.replace("count = 3", "count = 60")
    path = write_sweep(folder, scales, head='output = "disk/sweep"')
    with pytest.raises(DataError, match="the disk is full; finished points are kept") as found:
        (small_disk / "filler").write_bytes(bytes(8 * 2**20 - 300_000))
        here(path)
    assert "\n" not in str(found.value)
    (small_disk / "filler").unlink()
    with Store(small_disk / "sweep" / run.DATABASE) as store:
        kept = store.rows()
    assert kept and all(row.state == "done" for row in kept)
    log = computed(monkeypatch)
    result = here(path)
    assert result.failed == 0
    assert len(log) == len(result.records) - len(kept)
