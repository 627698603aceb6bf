"""dual_attention_backward in Triton, without atomics: row statistics, then keys and values, then queries.

The first kernel gives for each query lse = log2 sum exp(s) and dot = sum p dp; the others compute p and dp anew.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._attention import (
    add_weighted,
    attention_tiles,
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

from taskarith_fast.ops.dual_attention_backward import dual_attention_backward_reference


@triton.jit
def _attention_rows_kernel(
    grad, q, k, v, mask, lse, dot, grad_strides, q_strides, k_strides, v_strides, mask_strides, count, queries, keys,
    scale, CAUSAL: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CHUNK: tl.constexpr, SIDE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    _, first, item, b, h = place_of(1, queries, count, SIDE)
    grad, q = head(grad, grad_strides, b, h), head(q, q_strides, b, h)
    k, v, mask = head(k, k_strides, b, h), head(v, v_strides, b, h), head(mask, mask_strides, b, h)
    zeros = tl.zeros([SIDE, STEP], tl.float32)
    top = tl.full([SIDE], float("-inf"), tl.float32)
    weight = tl.zeros([SIDE], tl.float32)
    total = tl.zeros([SIDE], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + SIDE)
    for block in range(0, tl.cdiv(end, STEP)):
        start = tl.cast(block, tl.int32) * STEP
        s = products_of_rows(q, first, q_strides[2], queries, k, start, k_strides[2], keys, zeros, D, SIDE, STEP, CHUNK)
        s = seen_scores(s, scale, mask, mask_strides, first, start, queries, keys, False, CAUSAL, SIDE, STEP)
        dp = products_of_rows(
            grad, first, grad_strides[2], queries, v, start, v_strides[2], keys, zeros, E, SIDE, STEP, CHUNK
        )
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        top = new_top
        weight = weight * fade + tl.sum(p, 1)
        total = total * fade + tl.sum(p * dp, 1)
    rows = first + tl.arange(0, SIDE)
    at = item.to(tl.int64) * queries
    seen = weight > 0
    tl.store(lse + at + rows, tl.where(seen, top + tl.log2(weight), float("inf")), mask=rows < queries)
    tl.store(dot + at + rows, tl.where(seen, total / weight, 0.0), mask=rows < queries)


@triton.jit
def _attention_queries_kernel(
    grad, q, k, v, mask, lse, dot, grad_q, grad_mask, grad_strides, q_strides, k_strides, v_strides, mask_strides,
    count, queries, keys, scale, CAUSAL: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CHUNK: tl.constexpr,
    PART: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = 1 if grad_q is None else (D + PART - 1) // PART
    column, first, item, b, h = place_of(PARTS, queries, count, SIDE)
    grad, q = head(grad, grad_strides, b, h), head(q, q_strides, b, h)
    k, v, mask = head(k, k_strides, b, h), head(v, v_strides, b, h), head(mask, mask_strides, b, h)
    rows = first + tl.arange(0, SIDE)
    at = item.to(tl.int64) * queries
    top = tl.load(lse + at + rows, mask=rows < queries, other=float("inf"))
    mean = tl.load(dot + at + rows, mask=rows < queries, other=0.0)
    zeros = tl.zeros([SIDE, STEP], tl.float32)
    total = tl.zeros([SIDE, PART], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + SIDE)
    for block in range(0, tl.cdiv(end, STEP)):
        start = tl.cast(block, tl.int32) * STEP
        s = products_of_rows(q, first, q_strides[2], queries, k, start, k_strides[2], keys, zeros, D, SIDE, STEP, CHUNK)
        s = seen_scores(s, scale, mask, mask_strides, first, start, queries, keys, False, CAUSAL, SIDE, STEP)
        dp = products_of_rows(
            grad, first, grad_strides[2], queries, v, start, v_strides[2], keys, zeros, E, SIDE, STEP, CHUNK
        )
        ds = tl.exp2(s - top[:, None]) * (dp - mean[:, None])
        if grad_mask is not None:
            seen = start + tl.arange(0, STEP)
            place = (at + rows[:, None]) * keys + seen[None, :]
            inside = (rows < queries)[:, None] & (seen < keys)[None, :] & (column == 0)
            tl.store(grad_mask + place, ds, mask=inside)
        if grad_q is not None:
            tile = load_rows(k, start, k_strides[2], keys, D, STEP, PART, column * PART)
            total = add_weighted(total, ds * scale, tile)
    if grad_q is not None:
        store_rows(grad_q + at * D, first, queries, total, D, SIDE, PART, column * PART)


@triton.jit
def _attention_keys_kernel(
    grad, q, k, v, mask, lse, dot, grad_k, grad_v, grad_strides, q_strides, k_strides, v_strides, mask_strides, count,
    queries, keys, scale, CAUSAL: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CHUNK: tl.constexpr,
    PART: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    column, start, item, b, h = place_of(tl.cdiv(max(D, E), PART), keys, count, SIDE)
    grad, q = head(grad, grad_strides, b, h), head(q, q_strides, b, h)
    k, v, mask = head(k, k_strides, b, h), head(v, v_strides, b, h), head(mask, mask_strides, b, h)
    at = item.to(tl.int64) * queries
    zeros = tl.zeros([SIDE, STEP], tl.float32)
    by_k = tl.zeros([SIDE, PART], tl.float32)
    by_v = tl.zeros([SIDE, PART], tl.float32)
    begin = 0
    if CAUSAL:
        begin = start // STEP
    for block in range(begin, tl.cdiv(queries, STEP)):
        first = tl.cast(block, tl.int32) * STEP
        rows = first + tl.arange(0, STEP)
        top = tl.load(lse + at + rows, mask=rows < queries, other=float("inf"))
        s = products_of_rows(k, start, k_strides[2], keys, q, first, q_strides[2], queries, zeros, D, SIDE, STEP, CHUNK)
        s = seen_scores(s, scale, mask, mask_strides, first, start, queries, keys, True, CAUSAL, STEP, SIDE)
        p = tl.exp2(s - top[None, :])
        if grad_v is not None:
            tile = load_rows(grad, first, grad_strides[2], queries, E, STEP, PART, column * PART)
            by_v = add_weighted(by_v, p, tile)
        if grad_k is not None:
            mean = tl.load(dot + at + rows, mask=rows < queries, other=0.0)
            dp = products_of_rows(
                v, start, v_strides[2], keys, grad, first, grad_strides[2], queries, zeros, E, SIDE, STEP, CHUNK
            )
            ds = p * (dp - mean[None, :]) * scale
            by_k = add_weighted(by_k, ds, load_rows(q, first, q_strides[2], queries, D, STEP, PART, column * PART))
    if grad_k is not None:
        store_rows(grad_k + item.to(tl.int64) * keys * D, start, keys, by_k, D, SIDE, PART, column * PART)
    if grad_v is not None:
        store_rows(grad_v + item.to(tl.int64) * keys * E, start, keys, by_v, E, SIDE, PART, column * PART)


def dual_attention_backward_triton(
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
    """The op's own signature; heads of more than 128 go to the reference."""
    grad = grad.to(q.dtype)
    if not fits(q, v):
        return dual_attention_backward_reference(grad, q, k, v, mask, causal, scale, by_q, by_k, by_v, by_mask)
    asked = zip((q, k, v), (by_q, by_k, by_v), strict=True)
    grad_q, grad_k, grad_v = (q.new_zeros(t.shape if by else (0,)) for t, by in asked)
    (batch, count, queries, depth), keys, width = q.shape, k.shape[2], v.shape[3]
    grad_mask = q.new_zeros((batch, count, queries, keys) if by_mask else (0,), dtype=torch.float32)
    if grad.numel() == 0 or keys == 0 or depth == 0:
        return grad_q, grad_k, grad_v, grad_mask
    tensors, strides = zip(*(heads(t) for t in (grad, q, k, v)), strict=True)
    sizes = (*strides, (0,) * 4 if mask is None else mask.stride(), count, queries, keys, scale, causal, depth, width)
    meta = attention_tiles(q.dtype, depth, width, mask is not None)
    part, side = meta["PART"], meta["SIDE"]
    lse, dot = (q.new_empty((batch * count, queries), dtype=torch.float32) for _ in range(2))
    items = batch * count * triton.cdiv(queries, side)
    with torch.cuda.device_of(q):
        rest = {n: x for n, x in meta.items() if n != "PART"}
        _attention_rows_kernel[(items,)](*tensors, mask, lse, dot, *sizes, **rest)
        if by_k or by_v:
            parts = batch * count * triton.cdiv(keys, side) * triton.cdiv(max(depth, width), part)
            outputs = (grad_k if by_k else None, grad_v if by_v else None)
            _attention_keys_kernel[(parts,)](*tensors, mask, lse, dot, *outputs, *sizes, **meta)
        if by_q or by_mask:
            parts = items * (triton.cdiv(depth, part) if by_q else 1)
            outputs = (grad_q if by_q else None, grad_mask if by_mask else None)
            _attention_queries_kernel[(parts,)](*tensors, mask, lse, dot, *outputs, *sizes, **meta)
    return grad_q, grad_k, grad_v, grad_mask


def _compiled(name: str, kind: str, size: int, masked: bool, *outputs: str) -> tuple[str, dict[str, Any], dict]:
    signature, constants = launch_signature(("grad", "q", "k", "v"), kind, size, masked, False)
    del constants["dmask"], constants["dmask_strides"]
    signature |= {"lse": "*fp32:16", "dot": "*fp32:16"}
    signature |= {output: "*fp32:16" if output == "grad_mask" else f"*{kind}:16" for output in outputs}
    if name == "_attention_rows_kernel":
        del constants["PART"]
    if name == "_attention_queries_kernel":
        constants |= {output: None for output in {"grad_q", "grad_mask"} - set(outputs)}
    return name, signature, constants


COMPILED = [
    _compiled(name, kind, size, masked, *outputs)
    for name, *outputs in (
        ("_attention_rows_kernel",),
        ("_attention_queries_kernel", "grad_q"),
        ("_attention_queries_kernel", "grad_q", "grad_mask"),
        ("_attention_keys_kernel", "grad_k", "grad_v"),
    )
    for kind in ("fp32", "bf16", "fp16")
    for size, masked in ((64, False), (64, True), (80, False))
    if masked or "grad_mask" not in outputs
]
