"""Training recipes as part of a sweep: heads, masks, encoders, then their merges."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.data import find_task
from taskarith_fast.loops.config import FINETUNE_PRESETS
from taskarith_fast.loops.files import EncoderChoice, read_head
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.sweep.run import plan_sweep, sweep
from taskarith_fast.masks import Masks
from tests.loops.sweep.test_sweep import computed
from tests.loops.sweep.tiny_sweep import NAMES, write_sweep, write_tasks
from tests.loops.tiny import vit

TRAIN = """
[probe]
preset = "demo"

[[train]]
preset = "demo"
epochs = 1
lr = [1e-3, 1e-2]

[[train]]
preset = "demo_talos"
epochs = 1
[train.masks]
density = [0.1, 0.5]
rounds = 1
batches = 1

[[merge]]
method = "task_arithmetic"
scale = [0.5, 1.0]
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit())
    write_tasks(tmp_path)
    path = write_sweep(tmp_path, TRAIN)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "safetensors" not in line))
    return path


def here(path):
    return sweep(path, in_process=True, device="cpu")


def test_recipes_are_trained_once_each_and_merged(path, monkeypatch):
    log = computed(monkeypatch)
    result = here(path)
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    counts = {kind: sum(job.kind == kind for job in log) for kind in ("probe", "masks", "finetune", "single", "merge")}
    assert counts == {"probe": 2, "masks": 4, "finetune": 8, "single": 8, "merge": 8}
    recipes = {(r["recipe.lr"], r["recipe.masks.density"]) for r in result.records if r["kind"] == "merge"}
    assert recipes == {(1e-3, None), (1e-2, None), (None, 0.1), (None, 0.5)}
    assert len(result.best()) == 4
    log.clear()
    assert here(path).records == result.records and log == []


def test_a_trained_model_is_that_of_the_loop(path):
    here(path)
    plan = plan_sweep(path)
    job = next(j for j in plan.jobs if j.kind == "finetune" and j.labels["recipe"].get("lr") == 1e-2)
    task = find_task(str(path.parent / f"{job.work.task}.npz"))
    config = {"lr": 1e-2, "epochs": 1, "seed": 0, "device": "cpu", "threads": 1}
    expected = finetune(vit(), read_head(job.work.head, task), task, _replaced("demo", config)).state
    found = ta.load_state_dict(job.work.output)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_masks_are_those_of_calibrate(path):
    here(path)
    job = next(j for j in plan_sweep(path).jobs if j.kind == "masks" and j.labels["density"] == 0.5)
    masks = Masks.load(job.work.output)
    assert masks.count() == pytest.approx(0.5 * masks.numel, abs=len(masks))
    model = next(j for j in plan_sweep(path).jobs if j.kind == "finetune" and j.work.masks == job.work.output)
    base, tuned = vit().state_dict(), ta.load_state_dict(model.work.output)
    for name in masks:
        changed = base[name] != tuned[name]
        assert not torch.any(changed & ~masks[name])


def test_a_deleted_model_is_trained_again_only_if_a_point_reads_it(path, monkeypatch):
    here(path)
    models = sorted((path.parent / "sweep" / "models").glob("*.safetensors"))
    models[0].unlink()
    log = computed(monkeypatch)
    here(path)
    assert log == []
    path.write_text(path.read_text().replace("[0.5, 1.0]", "[0.5, 1.0, 1.5]"))
    here(path)
    assert [job.kind for job in log].count("finetune") == 1
    assert [job.kind for job in log].count("merge") == 4


def test_scales_of_sparse_models_may_be_stretched_by_their_density(path):
    path.write_text(path.read_text() + "\nscale_over_density = true\n")
    plan = plan_sweep(path)
    scales = {
        (j.labels["recipe"].get("masks.density"), j.work.parameters["scale"]) for j in plan.jobs if j.kind == "merge"
    }
    expected = {(None, 0.5), (None, 1.0), (0.1, 5.0), (0.1, 10.0), (0.5, 1.0), (0.5, 2.0)}
    assert scales == expected


def test_each_seed_trains_its_own(path):
    path.write_text("seeds = [0, 1]\n" + path.read_text())
    plan = plan_sweep(path)
    counts = {kind: sum(job.kind == kind for job in plan.jobs) for kind in ("probe", "masks", "finetune", "merge")}
    assert counts == {"probe": 2, "masks": 8, "finetune": 16, "merge": 16}


def test_a_run_that_diverges_fails_with_its_merges(path):
    path.write_text(path.read_text().replace("1\nlr = [1e-3, 1e-2]", "3\nlr = [1e-3, 1e30]"))
    result = here(path)
    failed = {(r["kind"], r["recipe.lr"]) for r in result.records if r["state"] == "failed"}
    assert failed == {("finetune", 1e30), ("single", 1e30), ("merge", 1e30)}
    assert any("needs a point that failed" in r["error"] for r in result.records if r["error"])
    assert any("needs a point" not in r["error"] for r in result.records if r["error"])


def _replaced(preset, changes):
    import dataclasses

    return dataclasses.replace(FINETUNE_PRESETS[preset], **changes)


def test_tasks_have_the_names_of_the_files(path):
    here(path)
    assert sorted({name for r in here(path).records for name in r["tasks"].split("+")}) == sorted(NAMES)


@pytest.mark.parametrize("table", ["[halving]\neta = 2\nrungs = 2", "[optuna]\ntrials = 4"])
def test_with_chosen_points_too_a_failed_run_fails_its_merges_only(table, path):
    if "optuna" in table:
        pytest.importorskip("optuna", reason="optuna is not installed")
    text = path.read_text().replace("1\nlr = [1e-3, 1e-2]", "3\nlr = [1e-3, 1e30]")
    path.write_text(f"{text}\n{table}\n")
    result = here(path)
    merges = {(r["recipe.lr"], r["state"]) for r in result.records if r["kind"] == "merge"}
    assert (1e30, "done") not in merges and (1e-3, "done") in merges
