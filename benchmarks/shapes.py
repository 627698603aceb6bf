"""Tensor shapes of the models that cases are named after."""

from __future__ import annotations

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
    generator = torch.Generator().manual_seed(seed)
    base = [torch.randn(s, generator=generator).mul_(0.02) for s in shapes]
    finetuned = [[b + torch.randn(b.shape, generator=generator).mul_(1e-3) for b in base] for _ in range(tasks)]
    return base, finetuned
