"""What load_state_dict takes and what it sends to convert; tied tensors are once in the file."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import taskarith_fast as ta
from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.tied import TIED, find_tied


@pytest.mark.parametrize("entry", ["state_dict", "model", "module", "model_state_dict", "teacher"])
@pytest.mark.parametrize("zipped", [True, False])
def test_entries_with_a_state_dict_are_read(entry, zipped, tmp_path):
    state = nn.BatchNorm1d(3).state_dict()
    torch.save({"epoch": 3, entry: state}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    loaded = ta.load_state_dict(tmp_path / "a.pt")
    assert list(loaded) == list(state) and all(torch.equal(loaded[k], state[k]) for k in state)


def test_two_models_in_one_file_are_not_guessed_between(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save({"teacher": state, "student": state}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="several models, 'teacher', 'student'"):
        ta.load_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m}])
def test_a_whole_module_is_sent_to_convert(wrap, tmp_path):
    torch.save(wrap(nn.Linear(2, 2)), tmp_path / "finetuned.pt")
    expected = r"modules\.linear\.Linear; run: taskarith convert finetuned\.pt finetuned\.safetensors"
    with pytest.raises(CheckpointError, match=expected):
        ta.load_state_dict(tmp_path / "finetuned.pt")


def test_tied_tensors_are_written_once_and_read_twice(tmp_path):
    weight, fused = torch.randn(4, 3), torch.randn(6, 2)
    q, k, v = fused.chunk(3)
    state = {"b.weight": weight, "q": q, "k": k, "v": v, "a.weight": weight, "t": weight.t()}
    assert find_tied(state) == {"a.weight": "b.weight"}
    path = ta.save_state_dict(state, tmp_path / "tied.safetensors")
    with safe_open(path, "pt") as file:
        assert "a.weight" not in file.keys()  # noqa: SIM118
        assert json.loads(file.metadata()[TIED]) == {"a.weight": "b.weight"}
    loaded = ta.load_state_dict(path)
    assert set(loaded) == set(state) and len(loaded) == 6
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("record", ['{"a": "nowhere"}', '{"w": "w"}', "[]", "{", '{"a": 3}'])
def test_a_damaged_record_of_tied_tensors_is_refused(record, tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", {TIED: record})
    with pytest.raises(CheckpointError, match="tied"):
        ta.load_state_dict(tmp_path / "a.safetensors")


def test_merging_files_with_tied_tensors_loses_no_name(tmp_path):
    for label in ("base", "a"):
        weight = torch.randn(4, 3)
        ta.save_state_dict({"one": weight, "two": weight, "three": torch.ones(2)}, tmp_path / f"{label}.safetensors")
    inputs = [tmp_path / f"{label}.safetensors" for label in ("base", "a")]
    ta.merge_files(inputs[0], inputs[1:], tmp_path / "out.safetensors", method="average")
    merged = ta.load_state_dict(tmp_path / "out.safetensors")
    assert set(merged) == {"one", "two", "three"} and torch.equal(merged["one"], merged["two"])
