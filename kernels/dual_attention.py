"""dual_attention in Triton: one pass over the keys, the softmax carried online and its tangent with it.

With p the unnormalised weights, a program keeps for its queries the maximal score and sum p, sum p v,
sum p (dv + ds v) and sum p ds; then y = sum p v / sum p and dy = (sum p (dv + ds v) - sum p ds y) / sum p.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._attention import (
    add_weighted,
    attention_tiles,
    bias_tile,
    fits,
    head,
    heads,
    launch_signature,
    load_rows,
    place_of,
    products_of_rows,
    seen_scores,
    store_rows,
)
from torch import Tensor

from taskarith_fast.ops.dual_attention import dual_attention_reference


@triton.jit
def _dual_attention_kernel(
    q, dq, k, dk, v, dv, mask, dmask, y, dy, q_strides, dq_strides, k_strides, dk_strides, v_strides, dv_strides,
    mask_strides, dmask_strides, count, queries, keys, scale,
    CAUSAL: tl.constexpr, WITH_VALUE: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    CHUNK: tl.constexpr, PART: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    MOVES: tl.constexpr = dq is not None or dk is not None or dmask is not None
    VALUE: tl.constexpr = WITH_VALUE or MOVES
    column, first, item, b, h = place_of(tl.cdiv(E, PART), queries, count, SIDE)
    q, dq = head(q, q_strides, b, h), head(dq, dq_strides, b, h)
    k, dk = head(k, k_strides, b, h), head(dk, dk_strides, b, h)
    v, dv = head(v, v_strides, b, h), head(dv, dv_strides, b, h)
    mask, dmask = head(mask, mask_strides, b, h), head(dmask, dmask_strides, b, h)

    top = tl.full([SIDE], float("-inf"), tl.float32)
    weight = tl.zeros([SIDE], tl.float32)
    value = tl.zeros([SIDE, PART], tl.float32)
    tangent = tl.zeros([SIDE, PART], tl.float32)
    step = tl.zeros([SIDE], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + SIDE)
    for block in range(0, tl.cdiv(end, STEP)):
        start = tl.cast(block, tl.int32) * STEP
        s = products_of_rows(
            q, first, q_strides[2], queries, k, start, k_strides[2], keys,
            tl.zeros([SIDE, STEP], tl.float32), D, SIDE, STEP, CHUNK,
        )  # fmt: skip
        s = seen_scores(s, scale, mask, mask_strides, first, start, queries, keys, False, CAUSAL, SIDE, STEP)
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        top = new_top
        weight = weight * fade + tl.sum(p, 1)
        values_tile = load_rows(v, start, v_strides[2], keys, E, STEP, PART, column * PART)
        if VALUE:
            value = add_weighted(value * fade[:, None], p, values_tile)
        tangent = tangent * fade[:, None]
        if dv is not None:
            tangent = add_weighted(tangent, p, load_rows(dv, start, dv_strides[2], keys, E, STEP, PART, column * PART))
        if MOVES:
            ds = tl.zeros([SIDE, STEP], tl.float32)
            if dq is not None:
                ds = products_of_rows(
                    dq, first, dq_strides[2], queries, k, start, k_strides[2], keys, ds, D, SIDE, STEP, CHUNK
                )
            if dk is not None:
                ds = products_of_rows(
                    q, first, q_strides[2], queries, dk, start, dk_strides[2], keys, ds, D, SIDE, STEP, CHUNK
                )
            ds *= scale
            if dmask is not None:
                row, column_of = tl.arange(0, SIDE)[:, None], tl.arange(0, STEP)[None, :]
                inside = (row < queries - first) & (column_of < keys - start)
                ds += bias_tile(dmask, dmask_strides, first, start, row, column_of, inside)
            ds *= p
            step = step * fade + tl.sum(ds, 1)
            tangent = add_weighted(tangent, ds, values_tile)

    inverse = tl.where(weight > 0, 1.0 / weight, 0.0)
    tangent *= inverse[:, None]
    at = item.to(tl.int64) * queries * E
    if VALUE:
        value *= inverse[:, None]
    if MOVES:
        tangent -= (step * inverse)[:, None] * value
    if WITH_VALUE:
        store_rows(y + at, first, queries, value, E, SIDE, PART, column * PART)
    store_rows(dy + at, first, queries, tangent, E, SIDE, PART, column * PART)


def dual_attention_triton(
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
    """The op's own signature, and the mask's tangent of dual_attention_biased; heads over 128 go to the reference."""
    if not fits(q, v):
        return dual_attention_reference(q, dq, k, dk, v, dv, mask, causal, scale, with_value, dmask)
    shape = (*q.shape[:-1], v.shape[-1])
    y, dy = q.new_empty(shape if with_value else (0,)), q.new_empty(shape)
    if dy.numel() == 0:
        return y, dy
    tensors, strides = zip(*(heads(t) for t in (q, dq, k, dk, v, dv)), strict=True)
    biases = (mask, dmask)
    biased = dmask is not None
    meta = attention_tiles(q.dtype, q.shape[-1], v.shape[-1], mask is not None or biased, biased)
    tiles = triton.cdiv(q.shape[2], meta["SIDE"]) * triton.cdiv(v.shape[3], meta["PART"])
    with torch.cuda.device_of(q):
        _dual_attention_kernel[(q.shape[0] * q.shape[1] * tiles,)](
            *tensors, *biases, y, dy, *strides, *((0,) * 4 if bias is None else bias.stride() for bias in biases),
            q.shape[1], q.shape[2], k.shape[2], scale, causal, with_value, q.shape[3], v.shape[3], **meta,
        )  # fmt: skip
    return y, dy


def _compiled(kind: str, size: int, present: str, masked: bool, causal: bool, biased: bool) -> tuple[str, dict, dict]:
    """A launch with the tangents that are `present`."""
    names = ("q", "k", "v", *(f"d{n}" for n in present))
    signature, constants = launch_signature(names, kind, size, masked, causal, biased)
    for absent in {"dq", "dk", "dv"} - set(names):
        constants |= {absent: None, f"{absent}_strides": (0,) * 3}
    signature |= dict.fromkeys(("y", "dy"), f"*{kind}:16")
    return "_dual_attention_kernel", signature, constants | {"WITH_VALUE": True}


COMPILED = [
    _compiled(kind, size, *case)
    for kind in ("fp32", "bf16", "fp16")
    for size in (64, 80)
    for case in (
        ("qkv", False, False, False),
        ("qkv", True, False, False),
        ("v", False, True, False),
        ("qkv", True, False, True),
    )
]
