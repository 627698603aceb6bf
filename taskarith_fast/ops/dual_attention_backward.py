r"""The gradient of dual attention's tangent by the tangents of queries, keys, values and mask.

dy is linear in (dq, dk, dv, dmask), so this is the ordinary gradient of attention at (q, k, v): with
s = scale q k^T + mask, p = softmax(s) by rows and the cotangent g of dy,

    dp = g v^T,    ds = p (dp - rowsum(p dp)),    grad_v = p^T g,    grad_q = scale ds k,    grad_k = scale ds^T q

and grad_mask = ds, which is of [L, S] and is asked for only where the mask has a tangent. In Triton p is computed anew,
a tile at a time, from each row's maximum and sum: nothing else of [L, S] exists, and every sum runs in one program in a
fixed order, so that the bytes repeat. Not differentiable a second time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._dual import wide

SCHEMA = (
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale, bool by_q, bool by_k, "
    "bool by_v, bool by_mask) -> (Tensor, Tensor, Tensor, Tensor)"
)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """p [B, H, L, S] in the type of q; a row that sees nothing is zero, as torch has it."""
    scores = scale * q @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0.0)


def dual_attention_backward_reference(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    by_q: bool,
    by_k: bool,
    by_v: bool,
    by_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formulas, dense, in float32, or in float64 for float64, as which grad_mask stays; unasked ones are empty."""
    dtype = q.dtype
    grad, q, k, v = wide(grad), wide(q), wide(k), wide(v)
    p = attention_weights(q, k, mask, causal, scale)
    dp = grad @ v.transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    none = q.new_empty(0)
    grad_q = scale * ds @ k if by_q else none
    grad_k = scale * ds.transpose(-1, -2) @ q if by_k else none
    grad_v = p.transpose(-1, -2) @ grad if by_v else none
    first, second, third = (g.to(dtype).contiguous() for g in (grad_q, grad_k, grad_v))
    return first, second, third, ds.contiguous() if by_mask else none


def dual_attention_backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    by_q: bool,
    by_k: bool,
    by_v: bool,
    by_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    asked = zip((q, k, v), (by_q, by_k, by_v), strict=True)
    grad_q, grad_k, grad_v = (q.new_empty(t.shape if by else (0,)) for t, by in asked)
    size = (*q.shape[:-1], k.shape[-2]) if by_mask else (0,)
    return grad_q, grad_k, grad_v, q.new_empty(size, dtype=torch.promote_types(q.dtype, torch.float32))


OP = define_op(
    "dual_attention_backward", SCHEMA, dual_attention_backward_reference, dual_attention_backward_fake, triton=True
)
