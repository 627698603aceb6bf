"""Image towers of open_clip; the state dict has the tower's names in a whole CLIP checkpoint, visual.*."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models.fast import use_fast_linear
from taskarith_fast.models.vit import check_image_size


class OpenClipEncoder(nn.Module):
    """The image tower of a CLIP model; its features lie in the space of the text embeddings, not normalised
    yet.

    Args:
        visual: The tower, `model.visual` of an open_clip model.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = use_fast_linear(visual)
        size = visual.image_size
        self.feature_dim: int = visual.output_dim
        self.image_size: int = size if isinstance(size, int) else size[0]
        self.mean = tuple(getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN)
        self.std = tuple(getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD)
        self.normalize_features = True

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape [B, feature_dim], of normalised images, shape [B, 3, S, S]."""
        features = self.visual(images)
        return features[0] if isinstance(features, tuple) else features


def load(name: str, *, pretrained: bool, image_size: int | None, depth: int | None) -> OpenClipEncoder:
    """Build the image tower of "ARCHITECTURE" or "ARCHITECTURE/WEIGHTS"; see load_encoder."""
    visual = load_clip(name, pretrained=pretrained, image_size=image_size).visual
    if depth is not None:
        _truncate(visual, depth, name)
    return OpenClipEncoder(visual)


def load_clip(name: str, *, pretrained: bool = True, image_size: int | None = None) -> Any:
    """Build a whole open_clip model, image and text tower.

    Args:
        name: "ARCHITECTURE/WEIGHTS"; WEIGHTS is one of open_clip's tags or the path of a file, and may be
            left out for random weights.
        pretrained: Load the weights.
        image_size: Side of the images in pixels; the architecture's own if None.

    Raises:
        ArgumentError: If open_clip knows no such architecture or weights.
        CheckpointError: If the weights are not here and cannot be fetched.
    """
    architecture, _, weights = name.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        close = ", ".join(difflib.get_close_matches(architecture, known)) or "ViT-B-32, ViT-B-16, ViT-L-14"
        raise ArgumentError(f"open_clip has no architecture {architecture!r}; near: {close}")
    if pretrained:
        _check_weights(architecture, weights)
    try:
        with _quiet():
            model = open_clip.create_model(
                architecture,
                pretrained=weights if pretrained else None,
                force_quick_gelu=pretrained and _uses_quick_gelu(architecture, weights),
                force_image_size=image_size,
            )
    except Exception as error:  # open_clip, huggingface_hub and urllib raise many kinds
        if not pretrained:
            raise
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"open_clip:{name}: no weights ({reason}); or ask for pretrained=False") from error
    patch = getattr(model.visual, "patch_size", None)
    if image_size is not None and patch is not None:
        check_image_size(image_size, patch if isinstance(patch, int) else patch[0])
    return model


def _uses_quick_gelu(architecture: str, weights: str) -> bool:
    """Tell whether tagged weights were trained with x sigmoid(1.702 x), whatever their architecture says."""
    return bool((open_clip.get_pretrained_cfg(architecture, weights) or {}).get("quick_gelu"))


def _check_weights(architecture: str, weights: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights not in tags and not Path(weights).is_file():
        raise ArgumentError(
            f"open_clip:{architecture} needs /WEIGHTS, one of {', '.join(tags[:5]) or 'none'}, ... or a "
            f"file, got {weights!r}; or ask for pretrained=False"
        )


def _truncate(visual: Any, depth: int, name: str) -> None:
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        raise ArgumentError(f"depth needs a vision transformer, and open_clip:{name} is a {type(visual).__name__}")
    blocks = visual.transformer.resblocks
    if not 1 <= depth <= len(blocks):
        raise ArgumentError(f"depth must be from 1 to {len(blocks)}, got {depth}")
    visual.transformer.resblocks = blocks[:depth]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's log lines off the screen: random weights were asked for, and failures are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
