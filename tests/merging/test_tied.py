"""Tied tensors through merge and convert: once in the files, under every name when read back."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file, save_model
from torch import nn

import taskarith_fast as ta
from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.tied import TIED
from taskarith_fast.merging.methods import PER_TASK
from taskarith_fast.merging.plan import plan_merge
from tests.merging.stream_cases import assert_same_bytes, write_models


def _model(seed):
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(90, 40, generator=g)
    return {"embed.weight": embedding, "norm.weight": torch.randn(40, generator=g), "head.weight": embedding}


def _once(state):
    return {name: tensor.clone() for name, tensor in state.items() if name != "head.weight"}


@pytest.fixture
def models():
    return [_model(seed) for seed in range(3)]


WRITERS = {
    "ours": lambda state, path: ta.save_state_dict(state, path.with_suffix(".safetensors")),
    "torch": lambda state, path: torch.save(state, path.with_suffix(".pt")),
    "copies": lambda state, path: save_file({k: v.clone() for k, v in state.items()}, path.with_suffix(".safetensors")),
    "left out": lambda state, path: save_file(_once(state), path.with_suffix(".safetensors")),
}


def _write(models, ways, folder):
    for t, (state, way) in enumerate(zip(models, ways, strict=True)):
        WRITERS[way](state, folder / f"m{t}")
    return sorted(folder.glob("m*.*"))


@pytest.mark.parametrize(
    "ways",
    [
        ("ours", "ours", "ours"),
        ("torch", "torch", "torch"),
        ("torch", "copies", "ours"),
        ("copies", "ours", "copies"),
        ("left out", "torch", "left out"),
        ("ours", "left out", "copies"),
    ],
    ids=str,
)
@pytest.mark.parametrize("shard_size", [None, "5KB"])
def test_a_tied_tensor_is_merged_and_written_once_and_read_under_every_name(ways, shard_size, models, tmp_path):
    paths = _write(models, ways, tmp_path)
    expected = ta.merge(_once(models[0]), [_once(m) for m in models[1:]], "ties")
    out = tmp_path / ("out" if shard_size else "out.safetensors")
    report = ta.merge_files(paths[0], paths[1:], out, method="ties", shard_size=shard_size)
    files = [out] if out.is_file() else sorted(out.glob("*.safetensors"))
    assert len(files) == (2 if shard_size else 1)
    assert sum(f.stat().st_size for f in files) < 4 * (90 * 40 + 40) * 1.2 + 4000
    loaded = ta.load_state_dict(out)
    assert set(loaded) == {"embed.weight", "norm.weight", "head.weight"}
    assert report["tied"] == {"head.weight": "embed.weight"} == loaded.tied
    assert_same_bytes(dict(loaded), expected | {"head.weight": expected["embed.weight"]})
    # The output is an input again.
    assert not plan_merge(out, [out, paths[1]], tmp_path / "again.safetensors").problems


def test_the_record_of_ties_is_the_formats_own_too(models, tmp_path):
    paths = _write(models[:2], ("torch", "torch"), tmp_path)
    ta.merge_files(paths[0], paths[1:], tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata()["head.weight"] == "embed.weight"
        assert json.loads(file.metadata()[TIED]) == {"head.weight": "embed.weight"}


def test_what_save_model_ties_is_read_under_every_name(tmp_path):
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.LayerNorm(3), layer)
    save_model(model, tmp_path / "a.safetensors", {"format": "pt"})
    loaded = ta.load_state_dict(tmp_path / "a.safetensors")
    assert_same_bytes(dict(loaded), dict(model.state_dict()))


def test_ties_in_several_shards_are_all_kept(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    one, two = torch.randn(3), torch.randn(4)
    ta.save_state_dict({"a": one, "b": one}, folder / "model-00001-of-00002.safetensors")
    ta.save_state_dict({"c": two, "d": two}, folder / "model-00002-of-00002.safetensors")
    assert set(ta.load_state_dict(folder)) == {"a", "b", "c", "d"}
    ta.merge_files(folder, [folder], tmp_path / "out", shard_size=13)
    assert_same_bytes(dict(ta.load_state_dict(tmp_path / "out")), {"a": one, "b": one, "c": two, "d": two})
    save_file({"e": torch.ones(2)}, folder / "more.safetensors", {TIED: '{"b": "c"}'})
    with pytest.raises(CheckpointError, match="b is recorded as tied to a and to c"):
        ta.load_state_dict(folder)


def test_ties_that_contradict_are_refused_before_anything_is_written(models, tmp_path):
    models[1]["head.weight"] = models[1]["embed.weight"] + 1e-3
    paths = _write(models, ("torch", "torch", "torch"), tmp_path)
    message = r"head\.weight: another model ties it to embed\.weight.*finetuned\[0\], which differs.*--untie"
    with pytest.raises(CheckpointError, match=message):
        ta.merge_files(paths[0], paths[1:], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(CheckpointError, match=message):
        ta.merge(models[0], models[1:])
    models[1]["head.weight"] = torch.ones(2, 2)
    paths = _write(models, ("torch", "torch", "torch"), tmp_path)
    assert "head.weight" in str(plan_merge(paths[0], paths[1:], tmp_path / "out.safetensors").problems[0])


def test_convert_unties_what_another_model_holds_apart(models, tmp_path):
    models[1]["head.weight"] = models[1]["embed.weight"] + 1e-3
    paths = _write(models[:2], ("torch", "torch"), tmp_path)
    ta.convert_file(paths[0], tmp_path / "base.safetensors", untie=True)
    ta.merge_files(tmp_path / "base.safetensors", paths[1:], tmp_path / "out.safetensors", method="average")
    assert_same_bytes(dict(ta.load_state_dict(tmp_path / "out.safetensors")), models[1])


def test_models_in_memory_keep_their_ties(models):
    merged = ta.merge(models[0], models[1:], "average")
    assert merged["head.weight"] is merged["embed.weight"] and list(merged) == list(models[0])
    apart = [{k: v.clone() for k, v in m.items()} for m in models]
    assert_same_bytes(merged, ta.merge(apart[0], apart[1:], "average"))


@pytest.mark.parametrize("method", list(PER_TASK))
def test_models_for_each_task_keep_their_ties(method, models):
    apart = [_once(m) for m in models]
    for merged, once in zip(
        ta.merge_per_task(models[0], models[1:], method), ta.merge_per_task(apart[0], apart[1:], method), strict=True
    ):
        assert merged["head.weight"] is merged["embed.weight"] and list(merged) == list(models[0])
        assert_same_bytes(_once(merged), once)


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_statistics_of_a_tied_tensor_may_have_either_name(name, models, tmp_path):
    fishers = [{name: m["embed.weight"].square(), "norm.weight": m["norm.weight"].square()} for m in models[1:]]
    expected = ta.merge(
        _once(models[0]),
        [_once(m) for m in models[1:]],
        "fisher",
        fishers=[{"embed.weight": f[name], "norm.weight": f["norm.weight"]} for f in fishers],
    )
    assert_same_bytes(_once(ta.merge(models[0], models[1:], "fisher", fishers=fishers)), expected)
    paths = _write(models, ("torch", "copies", "ours"), tmp_path)
    (tmp_path / "f").mkdir()
    files = write_models(fishers, tmp_path / "f")
    ta.merge_files(paths[0], paths[1:], tmp_path / "out.safetensors", method="fisher", fishers=files)
    assert_same_bytes(_once(dict(ta.load_state_dict(tmp_path / "out.safetensors"))), expected)
