"""Where each family adds class and position embeddings, and how the tokens depend on them.

The tokens that enter the first block (or the norm before it) are affine in the embeddings, and how they depend on them
is the same for every image. So the tokens of one blank image, computed as the model computes them, interpolation
included, give the transposed map, which takes the gradient at a sample's tokens to its gradient at the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast.capture.borrow import substituted


@dataclass(frozen=True, eq=False)
class Family:
    """How a library's module embeds images."""

    parameters: tuple[str, ...]
    """Names of the embeddings in the module."""
    tokens: Callable[[Any, Tensor], Tensor]
    """Tokens [B, S, d] of images [B, 3, H, W], as the module computes them."""
    enters: str | None
    """The submodule that the tokens enter next; None if they are the module's own output."""


def _open_clip_tokens(module: Any, images: Tensor) -> Tensor:
    patches = module.conv1(images).flatten(2).transpose(1, 2)
    cls = module.class_embedding.expand(len(images), 1, -1)
    return torch.cat([cls, patches], dim=1) + module.positional_embedding


_HF = "transformers.models."
FAMILIES = {
    "taskarith_fast.models.vit.VisionTransformer": Family(
        ("class_embedding", "positional_embedding"), lambda module, images: module.embed(images), "transformer"
    ),
    "open_clip.transformer.VisionTransformer": Family(
        ("class_embedding", "positional_embedding"), _open_clip_tokens, "ln_pre"
    ),
    "timm.models.vision_transformer.VisionTransformer": Family(
        ("cls_token", "reg_token", "pos_embed"),
        lambda module, images: module._pos_embed(module.patch_embed(images)),
        "norm_pre",
    ),
    f"{_HF}vit.modeling_vit.ViTEmbeddings": Family(
        ("cls_token", "mask_token", "position_embeddings"),
        lambda module, images: module(images, interpolate_pos_encoding=True),
        None,
    ),
    f"{_HF}dinov2.modeling_dinov2.Dinov2Embeddings": Family(
        ("cls_token", "mask_token", "position_embeddings"), lambda module, images: module(images), None
    ),
    f"{_HF}clip.modeling_clip.CLIPVisionEmbeddings": Family(
        ("class_embedding", "position_embedding.weight"),
        lambda module, images: module(images, interpolate_pos_encoding=True),
        None,
    ),
    f"{_HF}vit_mae.modeling_vit_mae.ViTMAEEmbeddings": Family(
        ("cls_token", "position_embeddings"),
        lambda module, images: module(images, interpolate_pos_encoding=True)[0],
        None,
    ),
}
"""By the class that holds the embeddings; subclasses count."""


class Stage:
    """The embeddings of one module that are wanted, by their names in the whole model."""

    def __init__(self, family: Family, module: nn.Module, names: dict[str, str]) -> None:
        self.module, self.names = module, tuple(names.values())
        self.end = module if family.enters is None else module.get_submodule(family.enters)
        self.ends_in_output = family.enters is None
        self._family, self._attributes = family, tuple(names)
        self._traced: dict[tuple[int, ...], tuple[Tensor, list[Tensor]]] = {}

    def trace(self, images: Tensor) -> tuple[int, ...]:
        """Record how the tokens of images of this size depend on the embeddings; returns the key of the record."""
        key = tuple(images.shape[1:])
        if key not in self._traced:
            own = dict(self.module.named_parameters())
            leaves = [own[name].detach().requires_grad_() for name in self._attributes]
            with torch.enable_grad(), substituted(self.module, dict(zip(self._attributes, leaves, strict=True))):
                self._traced[key] = (self._family.tokens(self.module, torch.zeros_like(images[:1])), leaves)
        return key

    def gradients(self, key: tuple[int, ...], grad_tokens: Tensor) -> tuple[Tensor, ...]:
        """One sample's gradients, in the order of `names`, from that at its tokens, shape [S, d]."""
        tokens, leaves = self._traced[key]
        cotangent = grad_tokens[None].to(tokens.dtype)
        return torch.autograd.grad(tokens, leaves, cotangent, retain_graph=True, materialize_grads=True)


def find_stages(model: nn.Module, wanted: Callable[[str], bool]) -> Iterator[Stage]:
    """Yield the places of a model where embeddings that are wanted are added, `wanted` being asked by their names."""
    for prefix, module in model.named_modules():
        family = next((FAMILIES[n] for n in map(_qualified, type(module).__mro__) if n in FAMILIES), None)
        if family is None:
            continue
        own = dict(module.named_parameters())
        names = {a: f"{prefix}.{a}" if prefix else a for a in family.parameters if a in own}
        names = {attribute: name for attribute, name in names.items() if wanted(name)}
        if names:
            yield Stage(family, module, names)


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
