r"""Attention and its derivative along a direction.

For every batch and head, with s = scale q k^T + mask and p = softmax(s) by rows,

    y  = p v
    ds = scale (dq k^T + q dk^T) + dmask,    dp = p (ds - rowsum(p ds)),    dy = dp v + p dv

The registered operator computes a strip of query rows at a time: of the four [L, S] matrices no more than a strip
exists. y comes with dy, or is left out where the model's own attention has computed it already. dy is linear in
(dq, dk, dv, dmask), and its gradient by them is the ordinary one of attention: torch's kernel, started again in the
backward pass, so that only q, k, v and the mask are kept; on a GPU in deterministic mode, where torch's may add in any
order, ``dual_attention_backward``. Absent tangents (None) cost nothing. A mask with a tangent, as T5's relative
position bias is, goes to a second operator, ``dual_attention_biased``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._dual import backend_of, check_pair, wide
from taskarith_fast.ops.dual_attention_backward import OP as backward_op
from taskarith_fast.ops.dual_attention_backward import attention_weights

SCHEMA = (
    "(Tensor q, Tensor? dq, Tensor k, Tensor? dk, Tensor v, Tensor? dv, Tensor? mask, bool causal, float scale, "
    "bool with_value) -> (Tensor, Tensor)"
)
BIASED_SCHEMA = SCHEMA.replace("bool with_value", "bool with_value, Tensor dmask")


def dual_attention_reference(
    q: Tensor,
    dq: Tensor | None,
    k: Tensor,
    dk: Tensor | None,
    v: Tensor,
    dv: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    with_value: bool,
    dmask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula, dense, in float32, or in float64 for float64."""
    dtype = q.dtype
    q, k, v = wide(q), wide(k), wide(v)
    dq, dk, dv = (None if t is None else wide(t) for t in (dq, dk, dv))
    p = attention_weights(q, k, mask, causal, scale)
    y = p @ v
    dy = torch.zeros_like(y)
    if dq is not None or dk is not None or dmask is not None:
        ds = torch.zeros_like(p) if dmask is None else wide(dmask)
        if dq is not None:
            ds = ds + scale * dq @ k.transpose(-1, -2)
        if dk is not None:
            ds = ds + scale * q @ dk.transpose(-1, -2)
        dy = dy + (p * (ds - (p * ds).sum(-1, keepdim=True))) @ v
    if dv is not None:
        dy = dy + p @ dv
    y = y.detach() if with_value else y.new_empty(0)
    return y.to(dtype).contiguous(), dy.to(dtype).contiguous()


def dual_attention_fake(
    q: Tensor,
    dq: Tensor | None,
    k: Tensor,
    dk: Tensor | None,
    v: Tensor,
    dv: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    with_value: bool,
    dmask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:-1], v.shape[-1])
    return q.new_empty(shape if with_value else (0,)), q.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, _, k, _, v, _, mask, ctx.causal, ctx.scale = inputs[:9]
    ctx.save_for_backward(q, k, v, mask)


def _backward(ctx: Any, _: Any, grad: Tensor) -> tuple[Any, ...]:
    q, k, v, mask = ctx.saved_tensors
    by = ctx.needs_input_grad
    wanted = (*by[1:6:2], any(by[10:]))
    if grad.is_cuda and torch.are_deterministic_algorithms_enabled():
        found = backward_op(grad, q, k, v, mask, ctx.causal, ctx.scale, *wanted, backend=backend_of(q, "auto"))
        by_dq, by_dk, by_dv, by_dmask = (g if needed else None for g, needed in zip(found, wanted, strict=True))
        return None, by_dq, None, by_dk, None, by_dv, None, None, None, None, *([by_dmask] * len(by[10:]))
    added = None if mask is None else mask.to(q.dtype)
    if wanted[3]:
        added = torch.zeros_like(q[..., :1]).expand(*q.shape[:-1], k.shape[-2]) if added is None else added
    with torch.enable_grad():
        leaves: list[Any] = [
            None if t is None else t.detach().requires_grad_(needed)
            for t, needed in zip((q, k, v, added), wanted, strict=True)
        ]
        a, b, c, m = leaves
        y = F.scaled_dot_product_attention(a, b, c, attn_mask=m, is_causal=ctx.causal, scale=ctx.scale)
    grads = iter(torch.autograd.grad(y, [t for t, needed in zip(leaves, wanted, strict=True) if needed], grad))
    by_dq, by_dk, by_dv, by_dmask = (next(grads) if needed else None for needed in wanted)
    return None, by_dq, None, by_dk, None, by_dv, None, None, None, None, *([by_dmask] * len(by[10:]))


OP = define_op(
    "dual_attention",
    SCHEMA,
    dual_attention_reference,
    dual_attention_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton=True,
)


BIASED = define_op(
    "dual_attention_biased",
    BIASED_SCHEMA,
    dual_attention_reference,
    dual_attention_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton=True,
)


def dual_attention(
    q: Tensor,
    dq: Tensor | None,
    k: Tensor,
    dk: Tensor | None,
    v: Tensor,
    dv: Tensor | None,
    *,
    mask: Tensor | None = None,
    dmask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Attend, and carry the tangents of queries, keys and values.

    Args:
        q: Queries, shape [B, H, L, d].
        dq: Tangent of q, or None.
        k: Keys, shape [B, H, S, d].
        dk: Tangent of k, or None.
        v: Values, shape [B, H, S, e].
        dv: Tangent of v, or None.
        mask: Broadcasts to [B, H, L, S]: bool (True = is seen) or added to the scores; None sees all.
        dmask: Tangent of a mask that is added, or None.
        causal: Query i sees keys 0 to i only; not together with a mask.
        scale: Factor of the scores; 1 / sqrt(d) if None.
        backend: "auto", "reference", "cpu" or "triton", of both.

    Returns:
        y of shape [B, H, L, e], without gradient, and dy, differentiable by the tangents; None if there is no
        tangent. A query that sees no key has y = dy = 0.

    Raises:
        ArgumentError: If a shape does not fit, mask and causal are both given, or under forward-mode AD.
        BackendError: If `backend` is absent.
    """
    check_pair("dual_attention", q=(q, dq), k=(k, dk), v=(v, dv), mask=(mask, dmask))
    _check_shapes(q, k, v, mask, causal)
    q, k, v = q.detach(), k.detach(), v.detach()
    if dq is None and dk is None and dv is None and dmask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale), None
    y, dy = _run(q, dq, k, dk, v, dv, mask, causal, scale, True, backend, dmask)
    return y.detach(), dy


def attention_tangent(
    q: Tensor,
    dq: Tensor | None,
    k: Tensor,
    dk: Tensor | None,
    v: Tensor,
    dv: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dmask: Tensor | None = None,
) -> Tensor | None:
    """dy alone, unchecked; arguments as dual_attention's."""
    if dq is None and dk is None and dv is None and dmask is None:
        return None
    return _run(q, dq, k, dk, v, dv, mask, causal, scale, False, "auto", dmask)[1]


def _run(
    q: Tensor,
    dq: Tensor | None,
    k: Tensor,
    dk: Tensor | None,
    v: Tensor,
    dv: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    with_value: bool,
    backend: str,
    dmask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dq, dk, dv = (None if t is None else t.to(q.dtype) for t in (dq, dk, dv))
    if mask is not None:
        mask = _added(mask, torch.promote_types(q.dtype, torch.float32)).expand(*q.shape[:-1], k.shape[-2])
    args, backend = (q, dq, k, dk, v, dv, mask, causal, scale, with_value), backend_of(q, backend)
    if dmask is None:
        return OP(*args, backend=backend)
    dmask = dmask.to(torch.promote_types(q.dtype, torch.float32)).expand(*q.shape[:-1], k.shape[-2])
    return BIASED(*args, dmask, backend=backend)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as a number to add: 0 where seen, -inf where not."""
    if mask.dtype != torch.bool:
        return mask.detach().to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> None:
    if q.dim() != 4 or k.shape != (*q.shape[:2], k.shape[-2], q.shape[-1]) or v.shape[:-1] != k.shape[:-1]:
        raise ArgumentError(
            "q, k, v must have shapes [B, H, L, d], [B, H, S, d], [B, H, S, e], "
            f"got {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    if mask is not None and causal:
        raise ArgumentError("mask and causal exclude each other, got both; put the triangle into the mask")
