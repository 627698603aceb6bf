"""dual_attention in Triton: one pass over the keys, the softmax carried online and its tangent with it.

With p the unnormalised weights, a program keeps for its queries the maximal score and sum p, sum p v,
sum p (dv + ds v) and sum p ds; then y = sum p v / sum p and dy = (sum p (dv + ds v) - sum p ds y) / sum p.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from taskarith_fast.kernels._attention import block_of, fits, head, heads, products_of_rows, seen_scores
from taskarith_fast.kernels._common import add_product, load_rows, store_rows
from taskarith_fast.ops.dual_attention import dual_attention_reference


@triton.jit
def _dual_attention_kernel(
    q, dq, k, dk, v, dv, mask, y, dy,
    q_strides, dq_strides, k_strides, dk_strides, v_strides, dv_strides, mask_strides, count, queries, keys, scale,
    CAUSAL: tl.constexpr, WITH_VALUE: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    MOVES: tl.constexpr = dq is not None or dk is not None
    VALUE: tl.constexpr = WITH_VALUE or MOVES
    tiles, parts = tl.cdiv(queries, BLOCK_M), tl.cdiv(E, BLOCK_E)
    column = tl.program_id(0) % parts * BLOCK_E
    first = tl.program_id(0) // parts % tiles * BLOCK_M
    item = tl.program_id(0) // parts // tiles
    b, h = (item // count).to(tl.int64), (item % count).to(tl.int64)

    q = head(q, q_strides, b, h)
    if dq is not None:
        dq = head(dq, dq_strides, b, h)
    k, v = head(k, k_strides, b, h), head(v, v_strides, b, h)
    if dk is not None:
        dk = head(dk, dk_strides, b, h)
    if dv is not None:
        dv = head(dv, dv_strides, b, h)
    if mask is not None:
        mask = head(mask, mask_strides, b, h)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    value = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    tangent = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    step = tl.zeros([BLOCK_M], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + BLOCK_M)
    for block in range(0, tl.cdiv(end, BLOCK_N)):
        start = tl.cast(block, tl.int32) * BLOCK_N
        s = products_of_rows(
            q, first, q_strides[2], queries, k, start, k_strides[2], keys,
            tl.zeros([BLOCK_M, BLOCK_N], tl.float32), D, BLOCK_M, BLOCK_N, CHUNK,
        )  # fmt: skip
        s = seen_scores(
            s, scale, mask, mask_strides, first, start, queries, keys, False, CAUSAL, BLOCK_M, BLOCK_N
        )
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        top = new_top
        weight = weight * fade + tl.sum(p, 1)
        values_tile = load_rows(v, start, v_strides[2], keys, E, BLOCK_N, BLOCK_E, column)
        if VALUE:
            value = add_product(value * fade[:, None], p, values_tile)
        tangent = tangent * fade[:, None]
        if dv is not None:
            tangent = add_product(tangent, p, load_rows(dv, start, dv_strides[2], keys, E, BLOCK_N, BLOCK_E, column))
        if MOVES:
            ds = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if dq is not None:
                ds = products_of_rows(
                    dq, first, dq_strides[2], queries, k, start, k_strides[2], keys, ds, D, BLOCK_M, BLOCK_N, CHUNK
                )
            if dk is not None:
                ds = products_of_rows(
                    q, first, q_strides[2], queries, dk, start, dk_strides[2], keys, ds, D, BLOCK_M, BLOCK_N, CHUNK
                )
            ds *= p * scale
            step = step * fade + tl.sum(ds, 1)
            tangent = add_product(tangent, ds, values_tile)

    inverse = tl.where(weight > 0, 1.0 / weight, 0.0)
    tangent *= inverse[:, None]
    at = item.to(tl.int64) * queries * E
    if VALUE:
        value *= inverse[:, None]
    if MOVES:
        tangent -= (step * inverse)[:, None] * value
    if WITH_VALUE:
        store_rows(y + at, first, queries, value, E, BLOCK_M, BLOCK_E, column)
    store_rows(dy + at, first, queries, tangent, E, BLOCK_M, BLOCK_E, column)


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
) -> tuple[Tensor, Tensor]:
    """The op's own signature; heads of more than 128 go to the reference."""
    if not fits(q, v):
        return dual_attention_reference(q, dq, k, dk, v, dv, mask, causal, scale, with_value)
    shape = (*q.shape[:-1], v.shape[-1])
    y, dy = q.new_empty(shape if with_value else (0,)), q.new_empty(shape)
    if dy.numel() == 0:
        return y, dy
    tensors, strides = zip(*(heads(t) for t in (q, dq, k, dk, v, dv)), strict=True)
    items = q.shape[0] * q.shape[1]
    meta = tiles_of(q.dtype, q.shape[-1], v.shape[-1], mask is not None)
    with torch.cuda.device_of(q):
        _dual_attention_kernel[(items * triton.cdiv(q.shape[2], meta["BLOCK_M"]) * triton.cdiv(v.shape[3], meta["BLOCK_E"]),)](
            *tensors, mask, y, dy, *strides, (0,) * 4 if mask is None else mask.stride(),
            q.shape[1], q.shape[2], k.shape[2], scale, causal, with_value, **meta,
        )  # fmt: skip
    return y, dy


def tiles_of(dtype: torch.dtype, depth: int, width: int, masked: bool) -> dict[str, int]:
    """Tile sides, warps and pipeline stages for heads of this size: the largest that spill no register."""
    wide = max(depth, width) > 64
    if dtype == torch.float32:
        n, chunk, part, stages = 16, 16, 32, 1
    elif dtype == torch.bfloat16:
        n, chunk, part, stages = 16 if masked and not wide else 32, 32 if wide else 64, 64, 2
    else:
        n, chunk, part, stages = 16, 32 if wide else 64, 32 if wide else 64, 2
    return {
        "D": depth, "E": width, "CHUNK": min(block_of(depth), chunk), "BLOCK_E": min(block_of(width), part),
        "BLOCK_M": 64, "BLOCK_N": n, "num_warps": 4, "num_stages": stages,
    }  # fmt: skip


def _compiled(kind: str, dtype: torch.dtype, size: int, present: str, masked: bool, causal: bool) -> tuple:
    """One launch, as the compiler sees it: heads of `size`, the tangents that are `present`."""
    data, none = f"*{kind}:16", (0,) * 3
    names = {"dq": "q", "dk": "k", "dv": "v"}
    absent = {n: None for n, letter in names.items() if letter not in present} | ({} if masked else {"mask": None})
    signature = {n: data for n in ("q", "dq", "k", "dk", "v", "dv", "y", "dy") if n not in absent}
    signature |= {f"{n}_strides": ("i32:16",) * 3 for n in ("q", "dq", "k", "dk", "v", "dv") if n not in absent}
    constants = absent | {f"{n}_strides": none for n in names if n in absent} | {"CAUSAL": causal, "WITH_VALUE": True}
    if masked:
        signature |= {"mask": "*fp32:16", "mask_strides": ("i32",) * 4}
    else:
        constants["mask_strides"] = (0,) * 4
    signature |= {"count": "i32", "queries": "i32", "keys": "i32", "scale": "fp32"}
    return "_dual_attention_kernel", signature, constants | tiles_of(dtype, size, size, masked)


COMPILED = [
    _compiled(kind, dtype, size, present, masked, causal)
    for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
    for size in (64, 80, 128)
    for present, masked, causal in (("qkv", False, False), ("qkv", True, False), ("v", False, True))
]
