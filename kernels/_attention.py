"""What attention's kernels share: tiles of a head's rows, scores in units of log 2, weighted sums, tile sizes."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._products import TF32, TF32X3, add_product
from torch import Tensor

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOG2E = tl.constexpr(1.4426950408889634)
TF32_BITS = tl.constexpr(-8192)  # sign, exponent and the ten leading bits of a float32


@triton.jit
def head(x, strides, batch, index):
    """The first row of one head of a tensor [B, H, rows, width], or None of None."""
    if x is not None:
        x = x + batch * strides[0] + index * strides[1]
    return x


@triton.jit
def place_of(parts, rows, count, SIDE: tl.constexpr):
    """A program's column part, first row, item, batch and head; programs of one item follow each other."""
    tiles = tl.cdiv(rows, SIDE)
    item = tl.program_id(0) // parts // tiles
    first = tl.program_id(0) // parts % tiles * SIDE
    return tl.program_id(0) % parts, first, item, (item // count).to(tl.int64), (item % count).to(tl.int64)


@triton.jit
def _tile(first, stride, count, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, column=0):
    """Where ROWS x COLUMNS values of a matrix [count, WIDTH], from row `first`, lie, and which are inside of it.

    Only the offset of the first row takes 64 bits: `stride` is below 2^24 (see `heads`).
    """
    rows, columns = tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
    inside = rows < count - first
    if WIDTH % COLUMNS != 0:
        inside = inside & (columns < WIDTH)
    return first.to(tl.int64) * stride, rows * stride + columns, inside


@triton.jit
def load_rows(x, first, stride, count, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, column=0):
    """A tile of a matrix, zero outside of it."""
    start, place, inside = _tile(first, stride, count, WIDTH, ROWS, COLUMNS, column)
    return tl.load(x + start + place, mask=inside, other=0.0)


@triton.jit
def store_rows(x, first, count, values, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, column=0):
    """Write a tile of a contiguous matrix, rounded to its type."""
    start, place, inside = _tile(first, WIDTH, count, WIDTH, ROWS, COLUMNS, column)
    tl.store(x + start + place, values.to(x.dtype.element_ty), mask=inside)


@triton.jit
def products_of_rows(
    a, a_first, a_stride, a_count, b, b_first, b_stride, b_count, total,
    WIDTH: tl.constexpr, A: tl.constexpr, B: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """total + a @ b^T for A rows of one matrix and B rows of another, CHUNK columns at a time."""
    for column in tl.range(0, WIDTH, CHUNK, loop_unroll_factor=1):
        x = load_rows(a, a_first, a_stride, a_count, WIDTH, A, CHUNK, column)
        y = load_rows(b, b_first, b_stride, b_count, WIDTH, B, CHUNK, column)
        total = add_product(total, x, tl.trans(y), TF32X3)
    return total


@triton.jit
def add_weighted(total, p, x):
    """total + p @ x for a float32 tile p and a tile x of a storage type.

    Tensor cores round p to their own type. Two products, of the leading bits of p and of the rest, keep 16 bits of p
    for bfloat16 and 22 for float16, whose values TF32 holds exactly.
    """
    if x.dtype == tl.float32:
        total = add_product(total, p, x, TF32X3)
    elif x.dtype == tl.bfloat16:
        leading = p.to(tl.bfloat16)
        rest = (p - leading.to(tl.float32)).to(tl.bfloat16)
        total = add_product(add_product(total, leading, x), rest, x)
    else:
        leading = (p.to(tl.int32, bitcast=True) & TF32_BITS).to(tl.float32, bitcast=True)
        total = add_product(add_product(total, leading, x, TF32), p - leading, x, TF32)
    return total


@triton.jit
def bias_tile(x, strides, first, start, row, column, inside):
    """Entries (first + row, start + column) of a bias of one head, zero where they are not `inside`."""
    place = x + first.to(tl.int64) * strides[2] + start.to(tl.int64) * strides[3]
    return tl.load(place + row * strides[2] + column * strides[3], mask=inside, other=0.0)


@triton.jit
def seen_scores(
    products, scale, mask, mask_strides, first, start, queries, keys,
    TRANSPOSED: tl.constexpr, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """log2 of exp(scale q k + mask) from the products q k [M, N], or [N, M]; -inf where a query does not see a key.

    The queries are those from `first` on, the keys those from `start` on.
    """
    if TRANSPOSED:
        row, column = tl.arange(0, M)[None, :], tl.arange(0, N)[:, None]
    else:
        row, column = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    scores = products * (scale * LOG2E)
    seen = column < keys - start
    if CAUSAL:
        seen = seen & (column - row <= first - start)
    if mask is not None:
        scores += bias_tile(mask, mask_strides, first, start, row, column, seen & (row < queries - first)) * LOG2E
    return tl.where(seen, scores, float("-inf"))


def heads(x: Tensor | None) -> tuple[Tensor | None, tuple[int, ...]]:
    """The tensor with contiguous rows no further than 2^24 apart, and its strides over batch, head and row."""
    if x is None:
        return None, (0, 0, 0)
    if x.stride(-1) != 1 or x.stride(-2) >= 2**24:
        x = x.contiguous()
    return x, x.stride()[:3]


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether the kernels take heads of this size and type."""
    return max(q.shape[-1], v.shape[-1]) <= 128 and q.dtype in KINDS.values()


def attention_tiles(dtype: torch.dtype, depth: int, width: int, masked: bool, biased: bool = False) -> dict[str, int]:
    """SIDE rows of the result and STEP of the other side, columns by CHUNK and PART: the largest that spill nothing."""
    wide = max(depth, width) > 64
    if dtype == torch.float32:
        step, chunk, part, stages = 16, 16, 32, 1
    elif dtype == torch.bfloat16:
        step, chunk, part, stages = 16 if masked and not wide else 32, 32 if wide else 64, 64, 2
    else:
        step, chunk, part, stages = 16, 32 if wide else 64, 32 if wide else 64, 2
    blocks = {"CHUNK": min(_block_of(depth), chunk), "PART": min(_block_of(width), part // 2 if biased else part)}
    return blocks | {"SIDE": 64, "STEP": step, "num_warps": 4, "num_stages": stages}


def _block_of(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def launch_signature(
    names: tuple[str, ...], kind: str, size: int, masked: bool, causal: bool, biased: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """COMPILED's signature and constants of a launch whose tensors are `names`, for heads of `size`.

    `biased` adds a tangent of the mask.
    """
    signature: dict[str, Any] = dict.fromkeys(names, f"*{kind}:16")
    signature |= {f"{name}_strides": ("i32:16",) * 3 for name in names}
    signature |= {"count": "i32", "queries": "i32", "keys": "i32", "scale": "fp32"}
    constants = {"CAUSAL": causal, "D": size, "E": size} | attention_tiles(
        KINDS[kind], size, size, masked or biased, biased
    )
    for name, present in (("mask", masked), ("dmask", biased)):
        if present:
            signature |= {name: "*fp32:16", f"{name}_strides": ("i32",) * 4}
        else:
            constants |= {name: None, f"{name}_strides": (0,) * 4}
    return signature, constants
