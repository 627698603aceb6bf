"""What attention's kernels share: where a head lies, scores in units of log 2, tile sizes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from taskarith_fast.kernels._common import load_rows, product

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def head(x, strides, batch, index):
    """The first row of one head of a tensor [B, H, rows, width]."""
    return x + batch * strides[0] + index * strides[1]


@triton.jit
def products_of_rows(
    a, a_first, a_stride, a_count, b, b_first, b_stride, b_count, total,
    WIDTH: tl.constexpr, A: tl.constexpr, B: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """total + a @ b^T for A rows of one matrix and B rows of another, CHUNK columns at a time."""
    for column in tl.range(0, WIDTH, CHUNK, loop_unroll_factor=1):
        x = load_rows(a, a_first, a_stride, a_count, WIDTH, A, CHUNK, column)
        total = product(x, tl.trans(load_rows(b, b_first, b_stride, b_count, WIDTH, B, CHUNK, column)), total)
    return total


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
        place = mask + first.to(tl.int64) * mask_strides[2] + start.to(tl.int64) * mask_strides[3]
        inside = seen & (row < queries - first)
        scores += tl.load(place + row * mask_strides[2] + column * mask_strides[3], mask=inside, other=0.0) * LOG2E
    return tl.where(seen, scores, float("-inf"))


def heads(x: Tensor | None) -> tuple[Tensor | None, tuple[int, ...]]:
    """The tensor with contiguous rows no further than 2^24 apart, and its strides over batch, head and row."""
    if x is None:
        return None, (0, 0, 0)
    if x.stride(-1) != 1 or x.stride(-2) >= 2**24:
        x = x.contiguous()
    return x, x.stride()[:3]


def block_of(width: int) -> int:
    """The tile side that holds a head of this size."""
    return max(16, triton.next_power_of_2(width))


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether the kernels take heads of this size and type."""
    return max(q.shape[-1], v.shape[-1]) <= 128 and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
