"""Vision transformers of timm; the model itself is the encoder, so the state dict has timm's names."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models.fast import use_fast_linear
from taskarith_fast.models.vit import check_image_size


def load(name: str, *, pretrained: bool, image_size: int | None, depth: int | None) -> nn.Module:
    """Build a timm vision transformer without its classifier; see load_encoder."""
    model = _create(name, pretrained, {} if image_size is None else {"img_size": image_size})
    if depth is not None:
        if not 1 <= depth <= len(model.blocks):
            raise ArgumentError(f"depth must be from 1 to {len(model.blocks)}, got {depth}")
        model.blocks = model.blocks[:depth]
    if image_size is not None:
        check_image_size(image_size, model.patch_embed.patch_size[0])
    model.feature_dim = model.num_features
    model.image_size = model.patch_embed.img_size[0]
    model.mean, model.std = (tuple(model.pretrained_cfg[key]) for key in ("mean", "std"))
    model.normalize_features = False
    return use_fast_linear(model)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    plain_name = name.partition(".")[0]
    if not timm.is_model(plain_name):
        close = ", ".join(difflib.get_close_matches(plain_name, timm.list_models("vit*")))
        raise ArgumentError(f"timm has no model {name!r}; near: {close or 'vit_small_patch16_224'}")
    if not timm.models.model_entrypoint(plain_name).__module__.endswith((".vision_transformer", ".deit")):
        raise ArgumentError(f"timm:{name} is not a plain vision transformer; try timm:vit_small_patch16_224")
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # timm, huggingface_hub and urllib raise many kinds
        reason = str(error).splitlines()[0]
        if not pretrained:
            raise ArgumentError(f"timm:{name} cannot be built ({reason})") from error
        raise CheckpointError(f"timm:{name}: no weights ({reason}); or ask for pretrained=False") from error
    if not isinstance(model, VisionTransformer):
        raise ArgumentError(f"timm:{name} is a {type(model).__name__}, not a plain vision transformer")
    return model
