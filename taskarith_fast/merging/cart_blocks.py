"""The matrices that CART decomposes: which tensors they are, and their parts in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.common import State
from taskarith_fast.ops.weighted_sum import weighted_sum

_BLOCK_WORDS = ("attn", "attention", "mlp", "intermediate.", "output.dense")
_OTHER_WORDS = ("ln", "norm", "bias")
_FUSED_WORDS = ("in_proj_weight", "qkv.weight")
GROUP = 8  # matrices decomposed at once: enough work for every thread, little memory


def is_cart_matrix(name: str, tensor: Tensor) -> bool:
    """Tell whether CART decomposes this tensor: a matrix inside a transformer block.

    For open_clip's names this is the official test, "attn" or "mlp" in the name and neither "ln" nor "bias";
    the other words cover the layers of timm's and Hugging Face's ViTs that carry neither.

    Args:
        name: The tensor's key.
        tensor: The tensor; only its shape and dtype are read.
    """
    return tensor.is_floating_point() and cart_cut(name, tuple(tensor.shape)) == "tensor"


def cart_cut(name: str, shape: tuple[int, ...], parameters: Mapping[str, Any] | None = None) -> str:
    """What CART must see at once of a floating tensor: a matrix it decomposes is one "tensor", the rest averages."""
    inside = any(word in name for word in _BLOCK_WORDS) and not any(word in name for word in _OTHER_WORDS)
    return "tensor" if inside and len(shape) == 2 and 0 not in shape else "element"


@dataclass(frozen=True)
class Block:
    """A matrix that is decomposed: rows of a tensor, in float32."""

    name: str
    rows: slice
    origin: Tensor  # [m, n]
    models: list[Tensor]  # T of [m, n]


def blocks_of(mean: Tensor, finetuned: Sequence[State], name: str, split_qkv: bool) -> list[Block]:
    """One tensor's blocks, three for a fused projection that is split; their origin is the models' average `mean`."""
    models = [model[name].detach() for model in finetuned]
    if mean.dtype != torch.float32:  # a rounded mean would leave its rounding in every delta
        models = [model.float() for model in models]
        mean = weighted_sum(models[:1], [[model] for model in models], [1.0 / len(models)] * len(models))[0]
    return cut_blocks(mean, models, name, split_qkv)


def cut_blocks(origin: Tensor, models: Sequence[Tensor], name: str, split_qkv: bool) -> list[Block]:
    """The same with any origin, all in float32."""
    rows = origin.shape[0]
    split = split_qkv and any(word in name for word in _FUSED_WORDS) and rows % 3 == 0
    step = rows // 3 if split else rows
    slices = [slice(first, first + step) for first in range(0, rows, step)]
    return [Block(name, s, origin[s], [model[s] for model in models]) for s in slices]


def write_blocks(merged: dict[str, Tensor], blocks: Sequence[Block], sums: Sequence[Tensor], scale: float) -> None:
    """Write origin + scale sum into the tensors that the blocks are parts of."""
    for block, total in zip(blocks, sums, strict=True):
        merged[block.name][block.rows] = torch.add(block.origin, total, alpha=scale).to(merged[block.name].dtype)


def rank_of(rank_ratio: float, matrix: Tensor) -> int:
    """The rank that is this fraction of full rank, at least 1."""
    return max(1, int(rank_ratio * min(matrix.shape)))


def check_scale(scale: float) -> None:
    """Refuse a `scale` that is NaN or infinite; ArgumentError."""
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}")
