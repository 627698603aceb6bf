"""A plain vision transformer in the DINOv2 architecture, fast to train on few CPU cores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.layers import Attention, Block, Linear, Transformer
from taskarith_fast.ops.linear import linear

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

POOLINGS = ("patch_mean", "cls", "cls_patch_mean")


@dataclass(frozen=True)
class VitConfig:
    """Shape of a VisionTransformer; the defaults are DINOv2's ViT-S/14."""

    image_size: int = 224
    """Side of the input images in pixels, a multiple of patch_size."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    position_grid: int = 37
    """Side of the learned grid of position embeddings; it is interpolated to the grid of the image."""
    width: int = 384
    """Channels d of the residual stream."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 6
    """Attention heads; they share the width equally."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over d."""
    layer_scale: float | None = 1.0
    """Initial factor of the residual branches, or None for a model without LayerScale."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    pooling: str = "patch_mean"
    """Features: mean of the patch tokens, class token, or both one after the other (2 d features)."""
    final_norm: bool = True
    """Normalise the tokens before pooling."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "position_grid", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_image_size(self.image_size, self.patch_size)
        if self.width % self.heads:
            raise ArgumentError(f"width must be a multiple of heads={self.heads}, got {self.width}")
        if self.pooling not in POOLINGS:
            raise ArgumentError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")


def check_image_size(image_size: int, patch_size: int) -> None:
    """Check that an image is cut into whole patches.

    Raises:
        ArgumentError: If image_size is not a positive multiple of patch_size.
    """
    if image_size < 1 or image_size % patch_size:
        nearest = max(1, round(image_size / patch_size)) * patch_size
        raise ArgumentError(
            f"image_size must be a multiple of the patch size {patch_size}, got {image_size}; try {nearest}"
        )


class VisionTransformer(nn.Module):
    """Encode images as pooled token features.

    Parameters are named as in open_clip's VisionTransformer (conv1, class_embedding, positional_embedding,
    transformer.resblocks.i.attn.in_proj_weight, ...), with the bias of the patch embedding and the LayerScale
    of DINOv2 as conv1.bias and ls_1.gamma, ls_2.gamma. No shape depends on the image size.

    Attributes:
        config: The VitConfig.
        feature_dim, image_size, mean, std, normalize_features: What loops need to know of an encoder.
    """

    def __init__(self, config: VitConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VitConfig()
        self.feature_dim = config.width * (2 if config.pooling == "cls_patch_mean" else 1)
        self.image_size = config.image_size
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.normalize_features = False
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + config.position_grid**2, width))
        self.conv1 = PatchEmbedding(config.patch_size, width)
        shape = (width, config.heads, hidden, config.norm_eps, config.layer_scale)
        self.transformer = Transformer([Block(*shape) for _ in range(config.depth)])
        self.ln_post = nn.LayerNorm(width, eps=config.norm_eps) if config.final_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: normal with deviation 0.02 for matrices, zero biases, as DINOv2 does."""
        for module in self.modules():
            if isinstance(module, (Linear, PatchEmbedding)):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Attention):
                nn.init.normal_(module.in_proj_weight, std=0.02)
                nn.init.zeros_(module.in_proj_bias)
        nn.init.normal_(self.positional_embedding, std=0.02)
        nn.init.normal_(self.class_embedding, std=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, shape [B, feature_dim], of normalised images, shape [B, 3, S, S].

        S may be any multiple of the patch size. Height and width may differ.
        """
        tokens = self.forward_tokens(images)
        cls, patches = tokens[:, 0], tokens[:, 1:]
        if self.config.pooling == "cls":
            return cls
        if self.config.pooling == "patch_mean":
            return patches.mean(dim=1)
        return torch.cat([cls, patches.mean(dim=1)], dim=1)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Return the tokens after blocks and final norm, class token first, shape [B, 1 + patches, d]."""
        return self.ln_post(self.transformer(self.embed(images)))

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens before the blocks, class token first, shape [B, 1 + patches, d]."""
        patches = self.conv1(images)  # [B, h, w, d]
        batch, rows, columns, width = patches.shape
        cls_position, grid = self.positions(rows, columns)
        cls = (self.class_embedding + cls_position).expand(batch, 1, width)
        return torch.cat([cls, patches.reshape(batch, rows * columns, width) + grid], dim=1)

    def positions(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Return the class position, shape [d], and those of rows x columns patches, shape [h w, d]."""
        side = self.config.position_grid
        cls_position, grid = self.positional_embedding[0], self.positional_embedding[1:]
        if (rows, columns) == (side, side):
            return cls_position, grid
        image = grid.view(1, side, side, -1).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=(rows, columns), mode="bicubic", align_corners=False)
        return cls_position, image.permute(0, 2, 3, 1).reshape(rows * columns, -1)


class PatchEmbedding(nn.Module):
    """Embed disjoint patches by one dense layer; the weight is shaped as the equal strided convolution."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(width, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape [B, 3, H, W], to patch embeddings, shape [B, H/p, W/p, d].

        Raises:
            ArgumentError: If the shape is not [B, 3, H, W] or a side is not a multiple of the patch size.
        """
        p = self.patch_size
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] % p or images.shape[3] % p:
            raise ArgumentError(
                f"images must have shape [B, 3, H, W] with H and W multiples of {p}, got {list(images.shape)}"
            )
        batch, _, height, width = images.shape
        patches = images.reshape(batch, 3, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        flat = patches.reshape(batch, height // p, width // p, 3 * p * p)
        return linear(flat, self.weight.flatten(1), self.bias)
