"""AdaMerging from files to a file, by the function and by the command line."""

import hashlib
import json

import pytest
import torch
from typer.testing import CliRunner

import taskarith_fast as ta
from taskarith_fast.cli import app
from taskarith_fast.data import find_task, save_npz
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.adamerge_files import ShuffledBatches
from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit

CLASSES = [str(c) for c in range(10)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two tasks as .npz files, their heads, a base and two fine-tuned encoders."""
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit(9))
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    base = vit().state_dict()
    ta.save_state_dict(base, "base.safetensors")
    for i, name in enumerate(("ones", "twos")):
        images, labels = (x.numpy() for x in digits().splits["test"].get(range(40 * i, 40 * i + 40)))
        parts = {
            f"{s}_{w}": x for s in ("train", "val", "test") for w, x in (("images", images[:, 0]), ("labels", labels))
        }
        save_npz(tmp_path / f"{name}.npz", CLASSES, **parts)
        record = {"kind": "head", "normalize": False, "classes": CLASSES, "task": name}
        head = random_head(16, 10, seed=i)
        ta.save_state_dict(head.state_dict(), f"{name}_head.safetensors", metadata={"taskarith": json.dumps(record)})
        state = {n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in base.items()}
        ta.save_state_dict(state, f"{name}.safetensors")
    return tmp_path


def run(*words):
    done = CliRunner().invoke(app, ["adamerge", *words], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


STATES = ("base.safetensors", "ones.safetensors", "twos.safetensors")
TASKS = tuple(w for n in ("ones", "twos") for w in ("--task", f"{n}.npz", "--head", f"{n}_head.safetensors"))
OUT = ("-o", "out.safetensors", "--device", "cpu")


def test_the_verb_writes_the_merge_and_its_coefficients(folder):
    said = run(*STATES, *TASKS, *OUT, "-p", "steps=3", "-p", "lr=0.01", "--batch-size", "8")
    assert "entropy 2." in said and "34 tensors, adamerging, 3 steps" in said
    state = ta.load_state_dict("out.safetensors")
    record = json.loads(state.metadata["taskarith"])
    table = torch.tensor(record["coefficients"], dtype=torch.float64)
    assert table.shape == (2, 34) and len(set(table.flatten().tolist())) > 2
    assert record["method"] == "adamerging" and record["parameters"]["steps"] == 3
    assert record["images"] == {"split": "test", "batch_size": 8, "tasks": ["ones", "twos"]}
    assert record["finetuned"][1]["name"] == "twos.safetensors"
    assert record["base"]["sha256"] == hashlib.sha256((folder / "base.safetensors").read_bytes()).hexdigest()
    base, *models = (ta.load_state_dict(path) for path in STATES)
    for i, name in enumerate(record["names"]):
        sums = ta.ops.weighted_sum([base[name]], [[m[name]] for m in models], table[:, i])
        assert torch.equal(state[name], sums[0])


def test_equal_commands_write_equal_bytes_and_another_seed_other_ones(folder):
    words = (*STATES, *TASKS, "--overwrite", "--device", "cpu", "-p", "steps=2", "--batch-size", "8")
    run(*words, "-o", "a.safetensors")
    run(*words, "-o", "b.safetensors")
    run(*words, "-o", "c.safetensors", "-p", "seed=1")
    a, b, c = ((folder / f"{x}.safetensors").read_bytes() for x in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ((*STATES[:2], *TASKS, *OUT), ArgumentError, "got 2 tasks, 2 heads and 1 checkpoints"),
        ((*STATES, *TASKS, *OUT, "--split", "all"), ArgumentError, "--split must be train, val or test, got 'all'"),
        ((*STATES, *TASKS, *OUT, "-m", "ties"), ArgumentError, "method must be one of adamerging, .*; got 'ties'"),
        ((*STATES, *TASKS, *OUT, "-p", "steps=few"), ArgumentError, "steps must be int such as 500, got 'few'"),
        ((*STATES, *TASKS, "-o", "base.safetensors"), CheckpointError, "exists already"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(folder, words, error, message):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(error, match=message):
        run(*words)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_each_iteration_is_another_epoch_of_the_same_images(folder):
    loader = ShuffledBatches(vit(), find_task("ones.npz").splits["test"], batch_size=16, seed=0)
    first, second = ([images for images, _ in loader] for _ in range(2))
    assert [len(images) for images in first] == [16, 16, 8]
    first, second = torch.cat(first).flatten(1), torch.cat(second).flatten(1)
    assert not torch.equal(first, second)
    assert torch.equal(first.sum(1).sort().values, second.sum(1).sort().values)
