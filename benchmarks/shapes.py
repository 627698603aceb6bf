"""Tensor shapes of the models that cases are named after."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def vit_b32_shapes() -> list[tuple[int, ...]]:
    """The 152 tensors of open_clip's ViT-B/32 image tower: 87,849,216 weights."""
    width, layers = 768, 12
    block = [
        (width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,),
        (width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,),
    ]  # fmt: skip
    ends = [(width,), (50, width), (width, 512), (width, 3, 32, 32), (width,), (width,), (width,), (width,)]
    return ends + block * layers


def vit_b32_matrices(layers: int) -> list[tuple[int, int]]:
    """The four matrices that CART decomposes, for `layers` blocks of ViT-B/32."""
    return [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * layers


def models(shapes: list[tuple[int, ...]], tasks: int, seed: int = 0) -> tuple[list[Tensor], list[list[Tensor]]]:
    """A base and `tasks` fine-tuned models: weights N(0, 0.02), deltas N(0, 1e-3), float32."""
    flat = flat_models(shapes, tasks, seed)
    base, *finetuned = (split(x, shapes) for x in flat)
    return base, finetuned


def flat_models(shapes: list[tuple[int, ...]], tasks: int, seed: int = 0) -> list[Tensor]:
    """The base and the fine-tuned models of `models`, each as one flat tensor."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(math.prod(s) for s in shapes)
    base = torch.randn(size, generator=generator).mul_(0.02)
    return [base, *(torch.randn(size, generator=generator).mul_(1e-3).add_(base) for _ in range(tasks))]


def split(flat: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Views of `flat`, one a shape."""
    parts = flat.split([math.prod(s) for s in shapes])
    return [part.view(s) for part, s in zip(parts, shapes, strict=True)]
