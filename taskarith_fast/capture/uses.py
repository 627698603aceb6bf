"""How functions use parameters: what of a parameter's gradient follows from a layer's input and its output's gradient.

Rules are by function, not by module, so that every library's LayerNorm, LayerScale or patch embedding has the same
one. For a sample with tokens s, input x and output gradient g:

    dense        y = x W^T       grad W[o, k] = sum_s g[s, o] x[s, k]
    transposed   y = x W         grad W[k, o] = sum_s x[s, k] g[s, o]
    scaled       y = x * p       grad p[d]    = sum_s g[s, d] x[s, d]
    added        y = ... + p     grad p[d]    = sum_s g[s, d]
    looked up    y = W[ids]      grad W[v, d] = sum_s [ids[s] = v] g[s, d]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Prepare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a function with parameters."""

    x: Tensor
    """What is to be kept for the backward pass, batch first."""
    roles: tuple[tuple[Tensor | None, str], ...]
    """Each parameter and how it acts: "dense", "transposed", "scaled", "added" or "looked up" (x then is the ids)."""
    prepare: Prepare | None = None
    """Makes of what was kept and the output's gradient, in the backward pass, the x and g of the formulas."""


def use_of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use:
    """F.linear: y = x W^T + b."""
    return Use(input, ((weight, "dense"), (bias, "added")))


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Use | None:
    if len(normalized_shape) != 1:
        return None

    def prepare(x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        return F.layer_norm(x.float(), normalized_shape, None, None, eps), grad_y

    return Use(input, ((weight, "scaled"), (bias, "added")), prepare)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Use | None:
    if len(normalized_shape) != 1:
        return None

    def prepare(x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        return F.rms_norm(x.float(), normalized_shape, None, eps), grad_y

    return Use(input, ((weight, "scaled"),), prepare)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Use | None:
    if scale_grad_by_freq or max_norm is not None:
        return None

    def prepare(ids: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        return ids, grad_y if padding_idx is None else grad_y.masked_fill((ids == padding_idx).unsqueeze(-1), 0)

    return Use(input, ((weight, "looked up"),), prepare)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Use | None:
    """A convolution whose windows do not overlap: a dense layer on patches."""
    kernel = (weight.shape[-2], weight.shape[-1])
    plain = _pair(stride) == kernel and _pair(dilation) == (1, 1) and groups == 1 and input.dim() == 4
    if not plain or (padding != "valid" and _pair(padding) != (0, 0)):
        return None
    return Use(input, ((weight, "dense"), (bias, "added")), functools.partial(_patches, kernel))


def _patches(kernel: tuple[int, int], images: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, c, H, W] and gradients [B, o, h, w] as rows [B, h, w, c p q] and [B, h, w, o]."""
    (p, q), (h, w) = kernel, grad_y.shape[-2:]
    batch, channels = images.shape[:2]
    cut = images[:, :, : h * p, : w * q].reshape(batch, channels, h, p, w, q)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, h, w, channels * p * q), grad_y.permute(0, 2, 3, 1)


def _mul(input: Tensor, other: Any) -> Use | None:
    if not isinstance(input, Tensor) or not isinstance(other, Tensor) or input.shape[-1:] != other.shape:
        return None
    return Use(input, ((other, "scaled"),))


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Use | None:
    return _mul(tensor1, tensor2) if value == 1 else None


def _matmul(input: Tensor, other: Tensor) -> Use | None:
    if other.dim() != 2:
        return None
    # x @ weight.t() is a dense layer.
    return Use(input, ((other, "transposed"),)) if other.is_contiguous() else Use(input, ((other.t(), "dense"),))


def _pair(value: Any) -> tuple[Any, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


RULES: dict[Any, Callable[..., Use | None]] = {
    F.linear: use_of_linear,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.embedding: _embedding,
    F.conv2d: _conv2d,
    torch.addcmul: _addcmul,
    torch.mul: _mul,
    Tensor.mul: _mul,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
}
"""What torch function uses its parameters how; the arguments are the function's own."""

_BY_SHAPE = frozenset({"empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"})
_BY_SHAPE_OF_SECOND = frozenset({"expand_as", "reshape_as", "to", "type_as", "view_as"})


def values_of(func: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those arguments of a torch function whose values count, not only their shape, type or device."""
    name = getattr(func, "__name__", "")
    if name in _BY_SHAPE or name.startswith("new_"):
        return ()
    return arguments[:1] if name in _BY_SHAPE_OF_SECOND else arguments
