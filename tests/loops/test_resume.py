"""Resuming: the bytes of a run that was killed are those of one that was not; other runs are refused."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taskarith_fast.checkpoint import load_state_dict
from taskarith_fast.errors import CheckpointError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit

ROOT = Path(__file__).parents[2]
SHORT = FinetuneConfig(steps=5, batch_size=16, lr=1e-3, warmup=2, device="cpu", checkpoint_every=2)


def _head():
    return random_head(16, 10, seed=0)


def _assert_kills_change_nothing(folder, recipe, kills):
    words = [sys.executable, "-m", "tests.loops.resumable", folder, recipe, *kills]
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, resumed = (load_state_dict(folder / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys() and len(whole["loss"]) == 20
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sorted(path.name for path in folder.iterdir()) == ["resumed.safetensors", "run.resume", "whole.safetensors"]


def test_a_run_killed_at_a_step_and_while_writing_ends_with_the_same_bytes(tmp_path):
    _assert_kills_change_nothing(tmp_path, "full", ["8", "w15"])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["full", "lora", "masked", "linearized", "linearized+masked"])
def test_a_run_killed_at_random_steps_ends_with_the_same_bytes(recipe, tmp_path):
    draw = random.Random(recipe)
    kills = sorted(draw.sample(range(1, 18), 5))
    _assert_kills_change_nothing(tmp_path, recipe, [draw.choice(["", "w"]) + str(step) for step in kills])


@pytest.mark.parametrize("recipe", ["full", "linearized", "linearized+lora"])
def test_a_finished_run_that_is_started_again_gives_the_same_bytes(recipe, tmp_path):
    place, config = tmp_path / "run.resume", dataclasses.replace(SHORT, recipe=recipe, lora_rank=4)
    first = finetune(vit(), _head(), digits(), config, checkpoint=place)
    second = finetune(vit(), _head(), digits(), config, checkpoint=place)
    plain = finetune(vit(), _head(), digits(), config)
    assert first.history == second.history == plain.history
    assert all(torch.equal(second.tau[name], delta) for name, delta in (plain.tau or {}).items())
    assert all(torch.equal(first.state[name], second.state[name]) for name in plain.state)
    assert all(torch.equal(first.state[name], plain.state[name]) for name in plain.state)


def test_random_numbers_of_the_model_go_on_where_they_were(tmp_path):
    class Noisy(torch.nn.Module):
        feature_dim, image_size, mean, std, normalize_features = 16, 8, vit().mean, vit().std, False

        def __init__(self):
            super().__init__()
            self.vit = vit()

        def forward(self, images):
            return torch.nn.functional.dropout(self.vit(images), 0.5, self.training)

    plain = finetune(Noisy(), _head(), digits(), SHORT)
    place = tmp_path / "run.resume"
    finetune(Noisy(), _head(), digits(), SHORT, checkpoint=place)
    resumed = finetune(Noisy(), _head(), digits(), SHORT, checkpoint=place)
    assert all(torch.equal(plain.state[name], resumed.state[name]) for name in plain.state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": dataclasses.replace(SHORT, lr=2e-3)}, r"config.lr differs \(0.001 there, 0.002 here\)"),
        ({"encoder": vit(1)}, r"encoder differs \(other values\); remove it to start anew"),
        ({"head": random_head(16, 10, seed=1)}, r"head of digits0 differs"),
        ({"task": digits(train=300)}, r"tasks differs"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(change, message, tmp_path):
    place = tmp_path / "run.resume"
    same = {"encoder": vit(), "head": _head(), "task": digits(), "config": SHORT}
    finetune(**same, checkpoint=place)
    before = place.read_bytes()
    with pytest.raises(CheckpointError, match=r"run.resume: belongs to another run, " + message):
        finetune(**(same | change), checkpoint=place)
    assert place.read_bytes() == before


def test_how_often_a_checkpoint_is_written_and_the_threads_may_change(tmp_path):
    place = tmp_path / "run.resume"
    finetune(vit(), _head(), digits(), SHORT, checkpoint=place)
    finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, checkpoint_every=1, threads=1), checkpoint=place)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    place = tmp_path / "run.resume"
    place.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run.resume: expected the checkpoint of a fine-tuning run"):
        finetune(vit(), _head(), digits(), SHORT, checkpoint=place)
    torch.save({"weight": torch.ones(3)}, place)
    with pytest.raises(CheckpointError, match=r"format 1\), got another file"):
        finetune(vit(), _head(), digits(), SHORT, checkpoint=place)
