"""taskarith inspect and convert as a user meets them."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

import taskarith_fast as ta
from taskarith_fast.cli import app
from taskarith_fast.errors import ArgumentError, CheckpointError
from tests.formats import models


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


class Finetuned(nn.Module):
    """What task_vectors saves, in small: a whole open_clip model without its text transformer, wrapped."""

    def __init__(self):
        super().__init__()
        self.model = models.open_clip_model()
        del self.model.transformer


@pytest.fixture
def finetuned(tmp_path):
    torch.manual_seed(0)
    model = Finetuned()
    torch.save(model, tmp_path / "finetuned.pt")
    return model.state_dict()


def test_convert_keeps_names_and_bits_when_nothing_else_is_asked(finetuned, tmp_path):
    out = tmp_path / "out.safetensors"
    said = run("convert", tmp_path / "finetuned.pt", out)
    assert "a module of class tests.cli.test_formats.Finetuned" in said
    state = ta.load_state_dict(out)
    assert set(state) == set(finetuned) and all(torch.equal(state[k], finetuned[k]) for k in state)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["taskarith"])
    assert metadata["format"] == "pt" and len(record["inputs"]["finetuned.pt"]["sha256"]) == 64


def test_convert_lists_what_it_renames_drops_and_casts(finetuned, tmp_path):
    out = tmp_path / "out.safetensors"
    said = run("convert", tmp_path / "finetuned.pt", out, "--to", "hf_clip", "--text-tower", "drop", "--dtype", "bf16")
    assert "renamed  model.visual.proj  ->  visual_projection.weight" in said
    assert "resblocks.{i}.ln_1.weight" in said and "(x2)" in said
    assert "dropped  model.token_embedding.weight" in said and "cast " in said and "hidden_act" in said
    state = ta.load_state_dict(out)
    assert set(state) == set(models.hf_clip().state_dict())
    assert all(tensor.dtype == torch.bfloat16 for tensor in state.values())


def test_converted_models_of_two_libraries_merge(tmp_path):
    torch.save(models.timm_vit(seed=1).state_dict(), tmp_path / "base.pt")
    torch.save({"state_dict": models.timm_vit(seed=2).state_dict()}, tmp_path / "a.pt")
    models.hf_vit(seed=3).save_pretrained(tmp_path / "b")
    for name in ("base.pt", "a.pt", "b"):
        run("convert", tmp_path / name, tmp_path / f"{name}.safetensors", "--to", "timm", "--drop-extra")
    inputs = [tmp_path / f"{name}.safetensors" for name in ("base.pt", "a.pt", "b")]
    run("merge", *inputs, "-o", tmp_path / "merged.safetensors", "-m", "average")
    assert set(ta.load_state_dict(tmp_path / "merged.safetensors")) == set(models.timm_vit().state_dict())


def test_inspect_shows_every_tensor_and_the_totals(finetuned, tmp_path):
    said = run("inspect", tmp_path / "finetuned.pt")
    assert "open_clip names, wrapped in model." in said and "sha256" in said
    assert all(name in said for name in finetuned)
    total = sum(t.numel() for t in finetuned.values())
    text = total - sum(t.numel() for n, t in finetuned.items() if n.startswith("model.visual."))
    assert f"{len(finetuned)} tensors, {total:,} parameters, {text:,} of them text; 0 NaN or Inf" in said


def test_inspect_speaks_json(tmp_path):
    nan = torch.tensor([3.0, 4.0, 0.0, float("nan"), float("-inf")])
    state = {"a": nan, "b": nan, "c": torch.tensor([0, 0, 5]), "d": torch.tensor([1e300, 1e300], dtype=torch.float64)}
    ta.save_state_dict(state, tmp_path / "s.safetensors", metadata={"who": "me"})
    found = json.loads(run("inspect", tmp_path / "s.safetensors", "--json"))
    assert found["tensors"]["a"] == {"dtype": "float32", "shape": [5], "norm": 5.0, "zeros": 1, "nonfinite": 2}
    assert found["tensors"]["c"]["norm"] is None and found["tensors"]["c"]["zeros"] == 2
    assert found["tensors"]["d"]["norm"] == pytest.approx(2**0.5 * 1e300)
    assert found["tied"] == {"b": "a"} and found["parameters"] == 7 and found["metadata"]["who"] == "me"
    assert found["layout"] is None and list(found["files"]) == ["s.safetensors"]


def test_terminal_commands_in_names_are_spelled_out(tmp_path):
    ta.save_state_dict({"\x1b[2Jw": torch.ones(1)}, tmp_path / "s.safetensors", metadata={"k": "\x1b]0;x\x07"})
    said = run("inspect", tmp_path / "s.safetensors")
    assert "\x1b" not in said and "\\x1b[2Jw" in said


def test_tied_tensors_stay_tied_through_convert(tmp_path):
    layer = nn.Linear(3, 3)
    torch.save(nn.Sequential(layer, layer), tmp_path / "m.pt")
    said = run("convert", tmp_path / "m.pt", tmp_path / "a.safetensors", "--dtype", "fp16")
    assert "tied  1.weight      written once, as 0.weight" in said
    run("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["0.bias", "0.weight"]
    assert set(ta.load_state_dict(tmp_path / "b.safetensors")) == {"0.bias", "0.weight", "1.bias", "1.weight"}


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["nowhere.pt", "out.safetensors"], CheckpointError, "nowhere.pt: no such checkpoint"),
        (["finetuned.pt", "out.bin"], CheckpointError, "must end in .safetensors"),
        (["finetuned.pt", "here.safetensors"], CheckpointError, "exists already"),
        (["finetuned.pt", "out.safetensors", "--to", "keras"], ArgumentError, "target must be one of open_clip"),
        (["finetuned.pt", "out.safetensors", "--to", "timm"], CheckpointError, "timm has no text tower"),
        (["finetuned.pt", "out.safetensors", "--dtype", "int4"], ArgumentError, "dtype must be one of"),
        (["finetuned.pt", "out.safetensors", "--key", "ema"], CheckpointError, "no entry 'ema'"),
        (["large.pt", "out.safetensors", "--dtype", "fp16"], CheckpointError, "w: 1 values are too large for float16"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words, error, message, finetuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.tensor([1.0, 1e6])}, "large.pt")
    ta.save_state_dict({"w": torch.ones(1)}, "here.safetensors")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(error, match=message) as caught:
        run("convert", *words)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
