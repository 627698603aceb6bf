"""`taskarith finetune`: recipes, the memory plan, resuming, adapters."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import taskarith_fast as ta
from taskarith_fast import data
from taskarith_fast.cli import app
from taskarith_fast.data import save_npz
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.loops.linearized import LinearizedEvaluator
from taskarith_fast.masks import Masks
from taskarith_fast.models import random_head
from taskarith_fast.progress import Stage
from tests.loops.tiny import digits, vit
from tests.models.tiny import tiny_encoder

CLASSES = [str(c) for c in range(10)]
SHORT = ("-s", "steps=6", "-s", "batch_size=8", "-s", "lr=1e-3", "-s", "device=cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task as an .npz file and its head; the encoder is the tiny one."""
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit())
    monkeypatch.chdir(tmp_path)
    images, labels = (x.numpy() for x in digits().splits["train"].get(range(40)))
    arrays = {
        f"{s}_{w}": x for s in ("train", "val", "test") for w, x in (("images", images[:, 0]), ("labels", labels))
    }
    save_npz(tmp_path / "digits.npz", CLASSES, **arrays)
    _write_head(random_head(16, 10, seed=0))
    return tmp_path


def _write_head(head):
    record = {"kind": "head", "normalize": False, "classes": CLASSES, "task": "digits"}
    metadata = {"taskarith": json.dumps(record)}
    ta.save_state_dict(head.state_dict(), "head.safetensors", metadata=metadata, overwrite=True)


def run(*words, exit_code=0):
    words = ["finetune", "--task", "digits.npz", "--head", "head.safetensors", *SHORT, *words]
    done = CliRunner().invoke(app, words)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == exit_code, done.output
    return done.stdout


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("recipe", ["bitfit", "lora", "talos"])
def test_a_recipe_writes_the_encoder_and_its_record_and_nothing_else(recipe, folder):
    masks = Masks.pack({name: p.detach() > 0 for name, p in vit().named_parameters()})
    masks.save("masks.safetensors")
    before = _names(folder)
    said = run(
        "-o", "out.safetensors", "--recipe", recipe, *(["--masks", "masks.safetensors"] if recipe == "talos" else [])
    )
    assert said.startswith("out.safetensors: encoder for digits, loss ")
    assert _names(folder) == sorted([*before, "out.safetensors"])
    state = ta.load_state_dict("out.safetensors")
    assert json.loads(state.metadata["taskarith"])["config"]["recipe"] == recipe
    changed = {name for name, tensor in vit().state_dict().items() if not torch.equal(tensor, state[name])}
    biases = {name for name in state if name.endswith("bias")}
    matrices = {f"transformer.resblocks.{i}.attn.in_proj_weight" for i in range(2)}
    assert changed == biases if recipe == "bitfit" else matrices <= changed


def test_a_stopped_run_goes_on_from_the_checkpoint_beside_its_output(folder, monkeypatch):
    run("-o", "whole.safetensors")
    advance, steps = Stage.advance, iter(range(100))

    def stop(self, count=1, note=None):
        if count == 1 and next(steps) == 4:
            raise KeyboardInterrupt
        advance(self, count, note)

    with monkeypatch.context() as patched:
        patched.setattr(Stage, "advance", stop)
        run("-o", "out.safetensors", "--checkpoint-every", "2", exit_code=130)
    assert "out.safetensors.resume" in _names(folder) and "out.safetensors" not in _names(folder)
    with pytest.raises(CheckpointError, match=r"out.safetensors.resume: belongs to another run, config.lr differs"):
        run("-o", "out.safetensors", "-s", "lr=1e-4")
    run("-o", "out.safetensors", "--checkpoint-every", "2")
    assert "out.safetensors.resume" not in _names(folder)
    whole, resumed = ta.load_state_dict("whole.safetensors"), ta.load_state_dict("out.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


_KILLED = """
import os, signal, sys
from taskarith_fast.cli import app
from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.progress import Stage
from tests.loops.tiny import vit

EncoderChoice.load = lambda self: vit()
left, advance = int(sys.argv[1]), Stage.advance

def kill(self, count=1, note=None):
    global left
    left -= count == 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self, count, note)

Stage.advance = kill
app(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linearized", "linearized+qkvo", "linearized+lora"])
def test_a_command_killed_twice_ends_with_the_bytes_of_one_that_was_not(recipe, folder):
    words = [
        *SHORT,
        "--task",
        "digits.npz",
        "--head",
        "head.safetensors",
        "--recipe",
        recipe,
        "--checkpoint-every",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for name, kills in (("whole", [99]), ("killed", [3, 2, 99])):
        for steps in kills:
            command = [sys.executable, "-c", _KILLED, str(steps), "finetune", *words, "-o", f"{name}.safetensors"]
            done = subprocess.run(command, env=environment, text=True, capture_output=True)
            assert done.returncode == (0 if steps == 99 else -signal.SIGKILL), done.stderr
            assert (f"{name}.safetensors" in _names(folder)) == (steps == 99)
            assert (f"{name}.safetensors.resume" in _names(folder)) == (steps != 99)
    whole, killed = ta.load_state_dict("whole.safetensors"), ta.load_state_dict("killed.safetensors")
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)


def test_without_checkpoints_none_is_written(folder, monkeypatch):
    monkeypatch.setattr("taskarith_fast.loops.resume.RunCheckpoint.save", lambda *_: pytest.fail("a checkpoint"))
    run("-o", "out.safetensors", "--checkpoint-every", "0")


def test_a_plan_is_printed_and_a_run_that_does_not_fit_is_refused(folder):
    before = _names(folder)
    said = run("--plan", "--recipe", "qkvo")
    assert "recipe qkvo, 8 images a pass" in said and "peak" in said
    with pytest.raises(ArgumentError, match=r"max_memory must be at least .* for this run, got 100.0 kB"):
        run("-o", "out.safetensors", "--max-memory", "100kB")
    with pytest.raises(ArgumentError, match="max_memory must be a number of bytes such as 1000000 or 5GB, got 'much'"):
        run("-o", "out.safetensors", "--max-memory", "much")
    assert _names(folder) == before
    run("-o", "out.safetensors", "--max-memory", "1GB")


def test_an_adapter_is_written_beside_the_merged_encoder(folder, monkeypatch):
    torch.manual_seed(0)
    encoder = tiny_encoder("vit")
    encoder.mean = encoder.std = (0.5, 0.5, 0.5)
    monkeypatch.setattr(EncoderChoice, "load", lambda self: encoder)
    _write_head(random_head(24, 10, seed=0))
    run("-o", "out.safetensors", "--recipe", "lora", "--peft", "adapter", "--encoder", "hf:owner/model")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/model" and (config["r"], config["lora_alpha"]) == (16, 512)
    with pytest.raises(CheckpointError, match="adapter: exists already"):
        run("-o", "more.safetensors", "--recipe", "lora", "--peft", "adapter")


def test_an_adapter_that_cannot_be_written_is_refused_before_the_run(folder):
    before = _names(folder)
    with pytest.raises(ArgumentError, match="peft must go with the recipe 'lora', got 'full'; leave it out"):
        run("-o", "out.safetensors", "--peft", "adapter")
    with pytest.raises(ArgumentError, match="needs separate query and value layers, got a fused weight"):
        run("-o", "out.safetensors", "--recipe", "lora", "--peft", "adapter")
    with pytest.raises(ArgumentError, match="--output is missing: name the"):
        run()
    with pytest.raises(ArgumentError, match="masks must be given for the recipes talos, lota, masked only"):
        run("-o", "out.safetensors", "--recipe", "talos")
    assert _names(folder) == before


def evaluate(*words):
    done = CliRunner().invoke(app, ["evaluate", "--task", "digits.npz", "--head", "head.safetensors", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("recipe", ["linearized", "linearized+lora", "linearized+masked"])
def test_a_linearized_recipe_writes_a_task_vector_that_is_evaluated_by_the_linearized_encoder(recipe, folder):
    masks = Masks.pack({name: p.detach() > 0 for name, p in vit().named_parameters()})
    masks.save("masks.safetensors")
    given = ["--masks", "masks.safetensors"] if "masked" in recipe else []
    run("-o", "tau.safetensors", "--recipe", recipe, *given, "-s", "lr=0.02")
    kind = ta.SparseTaskVector if given else ta.TaskVector
    tau = kind.load("tau.safetensors")
    record = json.loads(tau.metadata["record"])
    assert record["kind"] == "linearized task vector" and record["config"]["recipe"] == recipe
    assert "linearized" in tau.metadata and tau.norm() > 0
    task = data.find_task("digits.npz")
    heads, splits = {"digits": random_head(16, 10, seed=0)}, {"digits": task.splits["test"]}
    ours = LinearizedEvaluator(vit(), heads, splits, [tau])
    for scale in ([], ["--scale", "0.5"], ["--linearized"]):
        expected = ours([0.5 if "0.5" in scale else 1.0])["digits"].accuracy
        said = evaluate("--state", "tau.safetensors", *scale)
        assert f"{100 * expected:.2f} +-" in said
    twice = evaluate("--state", "tau.safetensors", "--state", "tau.safetensors", "--scale", "0.5")
    assert twice == evaluate("--state", "tau.safetensors")


def test_states_and_task_vectors_are_evaluated_as_what_they_are(folder):
    run("-o", "state.safetensors")
    state = dict(ta.load_state_dict("state.safetensors"))
    tau = ta.TaskVector.between(vit().state_dict(), state)
    tau.save("ordinary.safetensors")
    run("-o", "tangent.safetensors", "--recipe", "linearized")
    assert evaluate("--state", "ordinary.safetensors") == evaluate("--state", "state.safetensors")
    post_hoc = [evaluate("--state", f"{name}.safetensors", "--linearized") for name in ("ordinary", "state")]
    assert post_hoc[0] == post_hoc[1]
    with pytest.raises(ArgumentError, match="states must not mix task vectors of linearized and of ordinary"):
        evaluate("--state", "ordinary.safetensors", "--state", "tangent.safetensors")
    evaluate("--state", "ordinary.safetensors", "--state", "tangent.safetensors", "--linearized")
    for words in (["state", "--scale", "0.5"], ["state", "--state", "ordinary.safetensors"]):
        with pytest.raises(ArgumentError, match="state must be one file, at scale 1, unless task vectors are added"):
            evaluate("--state", f"{words[0]}.safetensors", *words[1:])


def test_a_tangent_belongs_to_one_encoder_and_is_no_model(folder, monkeypatch):
    run("-o", "tau.safetensors", "--recipe", "linearized")
    ta.save_state_dict(vit().state_dict(), "base.safetensors")
    with pytest.raises(CheckpointError, match=r"tau.safetensors: expected a model, got a task vector; apply it"):
        ta.merge_files("base.safetensors", ["tau.safetensors"], "merged.safetensors", method="average")
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit(1))
    with pytest.raises(CheckpointError, match=r"tau.safetensors: was trained in the tangent space of another encoder"):
        evaluate("--state", "tau.safetensors")


def test_a_linearized_run_can_be_planned_and_resumed(folder):
    assert "recipe linearized+qkvo, 8 images" in run("--plan", "--recipe", "linearized+qkvo")
    run("-o", "whole.safetensors", "--recipe", "linearized", "--checkpoint-every", "0")
    run("-o", "out.safetensors", "--recipe", "linearized", "--checkpoint-every", "2")
    assert (folder / "whole.safetensors").exists() and not (folder / "out.safetensors.resume").exists()
    whole, ours = ta.TaskVector.load("whole.safetensors"), ta.TaskVector.load("out.safetensors")
    assert all(torch.equal(whole[name], delta) for name, delta in ours.items())
