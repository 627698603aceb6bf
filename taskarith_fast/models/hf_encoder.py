"""Vision transformers of Hugging Face; each encoder is a subclass of its model, so the state dict has its
names.

The names are those the installed transformers gives the bare model in memory; they changed once, between the
releases 4 and 5 (attention.attention.query became attention.q_proj), and `save_pretrained` writes the older
ones.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, Dinov2Model, ViTMAEModel, ViTModel

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.fast import use_fast_linear
from taskarith_fast.models.hf_weights import absent, load_weights
from taskarith_fast.models.vit import IMAGENET_MEAN, IMAGENET_STD, check_image_size

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ViTEncoder(ViTModel):
    """Supervised and DINO vision transformers; the features are the normalised class token."""

    pixels = (_HALF, _HALF)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape [B, feature_dim], of normalised images, shape [B, 3, S, S]."""
        return super().forward(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]


class Dinov2Encoder(Dinov2Model):
    """DINOv2; the features are the normalised class token."""

    pixels = (IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape [B, feature_dim], of normalised images, shape [B, 3, S, S]."""
        return super().forward(images).last_hidden_state[:, 0]


class ClipEncoder(CLIPVisionModelWithProjection):
    """CLIP's image tower; the features lie in the space of the text embeddings, not normalised yet."""

    pixels = (_CLIP_MEAN, _CLIP_STD)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape [B, feature_dim], of normalised images, shape [B, 3, S, S]."""
        return super().forward(images, interpolate_pos_encoding=True).image_embeds


class ViTMAEEncoder(ViTMAEModel):
    """A masked autoencoder's encoder, nothing masked; the features are the mean of the patch tokens."""

    pixels = (IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape [B, feature_dim], of normalised images, shape [B, 3, S, S]."""
        p = int(self.embeddings.patch_embeddings.patch_size[0])  # type: ignore[index, union-attr, arg-type]
        patches = (images.shape[2] // p) * (images.shape[3] // p)
        # The model sorts the patches by this noise, so they stay in order.
        noise = torch.arange(patches, device=images.device).expand(len(images), -1)
        hidden = super().forward(images, noise=noise, interpolate_pos_encoding=True).last_hidden_state
        return hidden[:, 1:].mean(dim=1)


_ENCODERS: dict[str, Any] = {
    "vit": ViTEncoder,
    "dinov2": Dinov2Encoder,
    "clip": ClipEncoder,
    "clip_vision_model": ClipEncoder,
    "vit_mae": ViTMAEEncoder,
}


def _shape(width: int, depth: int, heads: int, patch: int, image: int, projection: int | None = None) -> dict[str, int]:
    shape = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "image_size": image,
    }
    return shape if projection is None else shape | {"projection_dim": projection}


# What random weights need to know when no configuration file is at hand.
_KNOWN_SHAPES = {
    "google/vit-base-patch16-224": ("vit", _shape(768, 12, 12, 16, 224)),
    "google/vit-base-patch16-224-in21k": ("vit", _shape(768, 12, 12, 16, 224)),
    "google/vit-large-patch16-224": ("vit", _shape(1024, 24, 16, 16, 224)),
    "facebook/dino-vits16": ("vit", _shape(384, 12, 6, 16, 224)),
    "facebook/dino-vitb16": ("vit", _shape(768, 12, 12, 16, 224)),
    "facebook/dinov2-small": ("dinov2", _shape(384, 12, 6, 14, 518)),
    "facebook/dinov2-base": ("dinov2", _shape(768, 12, 12, 14, 518)),
    "facebook/dinov2-large": ("dinov2", _shape(1024, 24, 16, 14, 518)),
    "openai/clip-vit-base-patch32": ("clip_vision_model", _shape(768, 12, 12, 32, 224)),
    "openai/clip-vit-base-patch16": ("clip_vision_model", _shape(768, 12, 12, 16, 224)),
    "openai/clip-vit-large-patch14": (
        "clip_vision_model",
        _shape(1024, 24, 16, 14, 224) | {"projection_dim": 768},
    ),
    "facebook/vit-mae-base": ("vit_mae", _shape(768, 12, 12, 16, 224)),
    "facebook/vit-mae-large": ("vit_mae", _shape(1024, 24, 16, 16, 224)),
}


def load(name: str, *, pretrained: bool, image_size: int | None, depth: int | None) -> nn.Module:
    """Build the encoder of a repository, a folder, or, at random, a model type; see load_encoder."""
    encoder, config = _configuration(name, pretrained)
    if image_size is not None:
        check_image_size(image_size, config.patch_size)
    if depth is not None:
        if not 1 <= depth <= config.num_hidden_layers:
            raise ArgumentError(f"depth must be from 1 to {config.num_hidden_layers}, got {depth}")
        config.num_hidden_layers = depth
    mean, std = _pixels(name, encoder) if pretrained else encoder.pixels
    model = _build(encoder, config, name if pretrained else None)
    model.feature_dim = config.projection_dim if encoder is ClipEncoder else config.hidden_size
    model.image_size = config.image_size if image_size is None else image_size
    model.mean, model.std = mean, std
    model.normalize_features = encoder is ClipEncoder
    return use_fast_linear(model.train())


def _configuration(name: str, pretrained: bool) -> tuple[Any, Any]:
    """Return the encoder class and configuration from the repository, or from what is known of it."""
    if not pretrained and name in _ENCODERS:
        return _ENCODERS[name], _ENCODERS[name].config_class()
    if not pretrained and name in _KNOWN_SHAPES:
        kind, shape = _KNOWN_SHAPES[name]
        return _ENCODERS[kind], _ENCODERS[kind].config_class(**shape)
    try:
        kind = transformers.AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        raise absent(f"hf:{name}", error, [*_ENCODERS, *_KNOWN_SHAPES]) from error
    if kind not in _ENCODERS:
        raise ArgumentError(f"hf:{name} must be one of the types {', '.join(_ENCODERS)}, got {kind!r}")
    return _ENCODERS[kind], _ENCODERS[kind].config_class.from_pretrained(name)


def _build(encoder: Any, config: Any, name: str | None) -> Any:
    """Build the library's own class, with a repository's weights or random ones, and make it an encoder."""
    options = {"add_pooling_layer": False} if encoder is ViTEncoder else {}
    if encoder is ViTMAEEncoder:
        config.mask_ratio = 0.0
    library = encoder.__base__
    if name is None:
        model = library(config, **options)
    else:
        model = load_weights(library, "hf", name, config, options, [*_ENCODERS, *_KNOWN_SHAPES])
    # Not before: transformers renames the tensors of older checkpoints for its own classes only.
    model.__class__ = encoder
    return model


def _pixels(name: str, encoder: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation from the repository's preprocessor, else the family's."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError):
        return encoder.pixels
    return tuple(processor.image_mean), tuple(processor.image_std)
