"""Reading what users bring, refusing what is not a checkpoint, writing atomically."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

import taskarith_fast as ta
from taskarith_fast.checkpoint import save_state_dict
from taskarith_fast.errors import CheckpointError


def test_sharded_directories_read_as_one_state(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    state = ta.load_state_dict(tmp_path)
    assert sorted(state) == ["a", "b"] and state["b"].shape == (3,)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x", "c": "y"}}')
    with pytest.raises(CheckpointError, match="the index names c"):
        ta.load_state_dict(tmp_path)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_pytorch_files_of_tensors_are_read(wrap, tmp_path):
    torch.save(wrap({"a": torch.ones(2)}), tmp_path / "model.pt")
    assert torch.equal(ta.load_state_dict(tmp_path / "model.pt")["a"], torch.ones(2))


class _Evil:
    def __reduce__(self):
        return (open, ("canary", "w"))


@pytest.mark.parametrize("content", ["evil", "object", "numbers", "text", "empty"])
def test_anything_but_tensors_is_refused_without_executing_it(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    if content == "evil":
        path.write_bytes(pickle.dumps(_Evil()))
    elif content == "object":
        torch.save(torch.nn.Linear(2, 2), path)
    elif content == "numbers":
        torch.save({"a": 3}, path)
    else:
        path.write_bytes(b"hello" if content == "text" else b"")
    with pytest.raises(CheckpointError, match=r"model\.pt") as error:
        ta.load_state_dict(path)
    assert "\n" not in str(error.value) and not (tmp_path / "canary").exists()


def test_a_failed_write_leaves_no_debris(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("taskarith_fast.checkpoint.state.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_state_dict({"a": torch.ones(2)}, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []
