"""Encoders of every family, small enough for a test."""

from torch import nn

from taskarith_fast.models import load_encoder
from tests.loops.tiny import vit

FAMILIES = ["ours", "open_clip", "timm", "vit", "dinov2", "clip_vision_model"]


def tiny_encoder(family: str) -> nn.Module:
    """An encoder of two blocks or one, on images of 32 pixels (ours: 8)."""
    if family == "ours":
        return vit()
    if family == "open_clip":
        return load_encoder("open_clip:ViT-S-32-alt", pretrained=False, image_size=64, depth=1)
    if family == "timm":
        return load_encoder("timm:vit_tiny_patch16_224", pretrained=False, image_size=32, depth=2)
    from taskarith_fast.models.hf_encoder import _ENCODERS, _build

    encoder = _ENCODERS[family]
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    model = _build(encoder, encoder.config_class(**shape, image_size=32, patch_size=8), None)
    model.image_size = 32
    return model
