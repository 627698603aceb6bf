"""PEFT adapters: the files, names and shapes that the library reads."""

import json

import pytest
import torch
from torch import nn

from taskarith_fast.checkpoint import load_state_dict
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models.lora import LowRankAdapter
from taskarith_fast.models.peft import save_peft_adapter
from tests.models.tiny import tiny_encoder


def _adapter(family, **options):
    model = tiny_encoder(family)
    adapter = LowRankAdapter(model, **options)
    for b in adapter.b:
        nn.init.normal_(b)
    return model, adapter


@pytest.mark.parametrize("family", ["vit", "dinov2", "clip_vision_model"])
def test_the_files_alone_give_the_merged_weights(family, tmp_path):
    model, adapter = _adapter(family, rank=4, scale=32.0)
    folder = save_peft_adapter(adapter, tmp_path / "adapter", "owner/model")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = dict(load_state_dict(folder / "adapter_model.safetensors"))
    state, merged = model.state_dict(), adapter.merged(model.state_dict())
    for module in config["target_modules"]:
        stem = f"base_model.model.{module}"
        a, b = tensors.pop(f"{stem}.lora_A.weight"), tensors.pop(f"{stem}.lora_B.weight")
        assert isinstance(model.get_submodule(module), nn.Linear) and a.shape == (4, 24) and b.shape == (24, 4)
        delta = config["lora_alpha"] / config["r"] * b @ a  # what PEFT adds
        torch.testing.assert_close(state[f"{module}.weight"] + delta, merged[f"{module}.weight"], atol=1e-5, rtol=1e-5)
    assert not tensors and len(config["target_modules"]) == 4
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 128, "none")
    assert config["base_model_name_or_path"] == "owner/model" and not config["fan_in_fan_out"]


@pytest.mark.parametrize("family", ["ours", "open_clip", "timm"])
def test_a_fused_weight_has_no_peft_form(family, tmp_path):
    _, adapter = _adapter(family, rank=2)
    with pytest.raises(ArgumentError, match="needs separate query and value layers, got a fused weight; take an enc"):
        save_peft_adapter(adapter, tmp_path / "adapter", "model")
    assert not any(tmp_path.iterdir())


def test_an_existing_directory_is_kept_unless_asked(tmp_path):
    _, adapter = _adapter("vit", rank=2)
    place = save_peft_adapter(adapter, tmp_path / "adapter", "first")
    with pytest.raises(CheckpointError, match=r"adapter: exists already; pass overwrite \(--overwrite\) to replace it"):
        save_peft_adapter(adapter, place, "second")
    save_peft_adapter(adapter, place, "second", overwrite=True)
    assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == "second"
