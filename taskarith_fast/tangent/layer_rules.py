"""Rules of the functions that layers are made of: they hand the tangents to the pair operators, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskarith_fast import ops
from taskarith_fast.ops.dual_attention import attention_tangent
from taskarith_fast.ops.dual_gelu import gelu_tangent
from taskarith_fast.ops.dual_glu import FORMS, glu_tangent
from taskarith_fast.ops.dual_layer_norm import norm_tangent
from taskarith_fast.ops.dual_linear import linear_tangent
from taskarith_fast.ops.dual_patch_embed import patch_tangent
from taskarith_fast.tangent.pair import NoRuleError, Pair, directions, paired, tangent_of, value_of

Rule = Callable[..., Any]


def _linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    vx, vw = value_of(x), value_of(weight)
    y = ops.linear(vx, vw if vx.is_contiguous() else _trained(vw), value_of(bias)).detach()
    count = directions([x, weight, bias])
    return paired(
        y, [linear_tangent(vx, tangent_of(x, t), vw, tangent_of(weight, t), tangent_of(bias, t)) for t in range(count)]
    )


def _trained(weight: Tensor) -> Tensor:
    """The weight as the plain model has it in training: torch rounds products of strided inputs differently then."""
    return weight.detach().requires_grad_(torch.is_grad_enabled())


def _conv2d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    vx, vw = value_of(x), value_of(weight)
    y = F.conv2d(vx, vw, value_of(bias), **options)
    tangents = []
    for t in range(directions([x, weight, bias])):
        dx, dw, db = (tangent_of(z, t) for z in (x, weight, bias))
        tangents.append(patch_tangent(y, vx, dx, vw, dw, db, **options))
    return paired(y, tangents)


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    _check_last(x, shape, "layer_norm")
    y = F.layer_norm(value_of(x), shape, value_of(weight), value_of(bias), eps)
    return _normed(y, x, weight, bias, eps, True)


def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    _check_last(x, shape, "rms_norm")
    y = F.rms_norm(value_of(x), shape, value_of(weight), eps)
    return _normed(y, x, weight, None, torch.finfo(x.dtype).eps if eps is None else eps, False)


def _normed(y: Tensor, x: Any, weight: Any, bias: Any, eps: float, centered: bool) -> Tensor:
    vx, vw = value_of(x), value_of(weight)
    tangents = []
    for t in range(directions([x, weight, bias])):
        dx, dw, db = (tangent_of(z, t) for z in (x, weight, bias))
        tangents.append(norm_tangent(vx, dx, vw, dw, db, eps, y.dtype, centered))
    return paired(y, tangents)


def _check_last(x: Any, shape: Any, name: str) -> None:
    if list(shape) != [x.shape[-1]]:
        raise NoRuleError(f"{name} over more than the last dimension has no rule for tangents")


def _gelu(x: Pair, approximate: str = "none") -> Tensor:
    y = F.gelu(x.value, approximate=approximate)
    return paired(y, [gelu_tangent(x.value, t, approximate) for t in x.tangents])


def quick_gelu(x: Any) -> Tensor:
    """x sigmoid(1.702 x) of a plain tensor or a Pair; layers of this kind call it instead of three functions."""
    y = value_of(x) * torch.sigmoid(1.702 * value_of(x))
    return paired(y, [gelu_tangent(x.value, t, "quick") for t in x.tangents]) if isinstance(x, Pair) else y


def gated(a: Any, b: Any, form: str) -> Tensor:
    """g(a) b of plain tensors or Pairs, in the forms of dual_glu; layers of this kind call it."""
    va, vb = value_of([a, b])
    y = FORMS[form](va) * vb
    if not isinstance(a, Pair) and not isinstance(b, Pair):
        return y
    return paired(y, [glu_tangent(va, tangent_of(a, t), vb, tangent_of(b, t), form) for t in range(directions([a, b]))])


def _attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p > 0 or enable_gqa or q.dim() != 4:
        raise NoRuleError("scaled_dot_product_attention with dropout or grouped heads has no rule")
    vq, vk, vv, mask = value_of([q, k, v, attn_mask])
    y = F.scaled_dot_product_attention(vq, vk, vv, attn_mask=mask, is_causal=is_causal, scale=scale)
    tangents = []
    for t in range(directions([q, k, v, attn_mask])):
        dq, dk, dv, dmask = (tangent_of(z, t) for z in (q, k, v, attn_mask))
        tangents.append(attention_tangent(vq, dq, vk, dk, vv, dv, mask, is_causal, scale, dmask))
    return paired(y, tangents)


def _softmax(x: Pair, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    y = torch.softmax(x.value, dim, dtype=dtype)  # type: ignore[arg-type]
    tangents = []
    for t in x.tangents:
        p = None if t is None else y * t
        tangents.append(None if p is None else p - y * p.sum(dim, keepdim=True))
    return paired(y, tangents)


def _normalize(x: Pair, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    if p != 2.0 or out is not None:
        raise NoRuleError("normalize by another norm than the Euclidean has no rule for tangents")
    norm = x.value.norm(2, dim, keepdim=True).clamp_min(eps)
    y = F.normalize(x.value, dim=dim, eps=eps)
    return paired(y, [None if t is None else (t - y * (y * t).sum(dim, keepdim=True)) / norm for t in x.tangents])


def _multi_head_attention(
    query: Any,
    key: Any,
    value: Any,
    width: int,
    heads: int,
    in_weight: Any,
    in_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_weight: Any,
    out_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    is_causal: bool = False,
    **rest: Any,
) -> tuple[Tensor, None]:
    """What nn.MultiheadAttention does, sequence first [L, B, D], in functions that have rules."""
    if need_weights or bias_k is not None or add_zero_attn or (training and dropout_p > 0) or query.dim() != 3:
        raise NoRuleError("multi_head_attention_forward with weights, dropout or added keys has no rule for tangents")
    if key_padding_mask is not None or (attn_mask is not None and attn_mask.dim() != 2):
        raise NoRuleError("multi_head_attention_forward with a mask a sequence has no rule for tangents")
    if use_separate_proj_weight:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        biases = (None,) * 3 if in_bias is None else in_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    elif query is key and key is value:
        q, k, v = F.linear(query, in_weight, in_bias).chunk(3, dim=-1)
    else:
        biases = (None,) * 3 if in_bias is None else in_bias.chunk(3)
        parts = zip((query, key, value), in_weight.chunk(3), biases, strict=True)
        q, k, v = (F.linear(x, w, b) for x, w, b in parts)
    q, k, v = (x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))  # [B, H, L, d]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask  # here True is hidden, there it is seen
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    return F.linear(y.permute(2, 0, 1, 3).flatten(2), out_weight, out_bias), None


RULES: dict[Any, Rule] = {
    F.linear: _linear,
    **dict.fromkeys((F.conv2d, torch.conv2d), _conv2d),
    **dict.fromkeys((F.layer_norm, torch.layer_norm), _layer_norm),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), _rms_norm),
    F.gelu: _gelu,
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax),
    F.normalize: _normalize,
    F.multi_head_attention_forward: _multi_head_attention,
}
