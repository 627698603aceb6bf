"""The demo's encoder as stock torch would have it: nn.Linear, nn.Conv2d, nn.GELU; the baseline of the training step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.scale_1, self.scale_2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale_1 * self.attention(self.norm_1(x))
        return x + self.scale_2 * self.mlp(self.norm_2(x))


class StockVit(nn.Module):
    """ViT-S/14 with LayerScale, mean of the patch tokens; the same mathematics as models.VisionTransformer."""

    def __init__(self, width: int = 384, depth: int = 8, heads: int = 6, patch: int = 14, grid: int = 37) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, width, grid, grid) * 0.02)
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(depth)])

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        x = x + F.interpolate(self.positions, size=x.shape[2:], mode="bicubic", align_corners=False)
        x = x.flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))[:, 1:].mean(1)
