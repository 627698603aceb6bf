"""A tile of a dense layer's weight gradient in registers, and where its selected entries lie in compact memory."""

from __future__ import annotations

import triton
import triton.language as tl
from taskarith_fast.kernels._products import RUN, Tile, add_product, on_tensor_cores
from torch import Tensor

FLOAT = (Tile(128, 128, 16, 8, 3), Tile(64, 64, 16, 4, 3))
HALF = (Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 4, 3))
_ROWS = 8


@triton.jit
def tile_of(k, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr):
    """How many tiles lie across the weight, which of them is the program's, its first row, its rows and columns."""
    across = tl.cdiv(k, BLOCK_K)
    tile = tl.program_id(0) % across
    top = (tl.program_id(0) // across).to(tl.int64) * BLOCK_O
    return across, tile, top, top + tl.arange(0, BLOCK_O), tile.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)


@triton.jit
def gradient_quarters(
    x, grad_y, rows, columns, count, o, k, x_row, x_column, y_row, y_column,
    BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """sum_n grad_y[n, rows] x[n, columns] over `count` rows n, float32; after each RUN of them a rounded addition.

    In four parts of a quarter of the rows: what is done with one after the other takes fewer registers.
    """
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    y_tile, x_tile = grad_y + rows[:, None] * y_column, x + columns[None, :] * x_column
    gradient = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    run = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    for first in range(0, count, BLOCK_N):
        at = first + n
        ys = tl.load(y_tile + at[None, :] * y_row, mask=(rows < o)[:, None] & (at < count)[None, :], other=0.0)
        xs = tl.load(x_tile + at[:, None] * x_row, mask=(at < count)[:, None] & (columns < k)[None, :], other=0.0)
        run = add_product(run, ys, xs)
        if RUN != 0:  # noqa: SIM102 (a constant)
            if (first + BLOCK_N) % RUN == 0:
                gradient += run
                run = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    parts = tl.reshape(gradient + run, (2, 2, BLOCK_O // 4, BLOCK_K))
    even, odd = tl.split(tl.permute(parts, (2, 3, 0, 1)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def selected_bits(mask, rows, columns, o, k):
    """1 for the selected entries of a tile of the weight, else 0."""
    entry = rows[:, None] * k + columns[None, :]
    inside = (rows < o)[:, None] & (columns < k)[None, :]
    return (tl.load(mask + (entry >> 3), mask=inside, other=0).to(tl.int32) >> (entry & 7).to(tl.int32)) & 1


@triton.jit
def has_selected(starts, rows, across, tile, o):
    """Whether a tile of the weight holds a selected entry."""
    start = starts + rows * (across + 1) + tile
    counts = tl.load(start + 1, mask=rows < o, other=0) - tl.load(start, mask=rows < o, other=0)
    return tl.sum(counts) > 0


@triton.jit
def selected_places(mask, starts, rows, columns, across, tile, o, k):
    """Which entries of a tile are selected, and the place of each in compact memory."""
    bits = selected_bits(mask, rows, columns, o, k)
    first = tl.load(starts + rows * (across + 1) + tile, mask=rows < o, other=0)
    return bits != 0, first[:, None] + (tl.cumsum(bits, 1) - bits)


@triton.jit
def _tile_starts_kernel(starts, mask, row_starts, o, k, BLOCK_K: tl.constexpr, ROWS: tl.constexpr):
    across = tl.cdiv(k, BLOCK_K)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.load(row_starts + rows, mask=rows < o, other=0)
    for tile in range(across):
        tl.store(starts + rows * (across + 1) + tile, place, mask=rows < o)
        columns = tile * BLOCK_K + tl.arange(0, BLOCK_K).to(tl.int64)
        place += tl.sum(selected_bits(mask, rows, columns, o, k), 1)
    tl.store(starts + rows * (across + 1) + across, place, mask=rows < o)


def tile_starts(mask: Tensor, row_starts: Tensor, k: int, block: int) -> Tensor:
    """The selected entries before each tile of `block` columns, row by row: int64 [o, tiles + 1]."""
    o = row_starts.numel() - 1
    starts = row_starts.new_empty(o, triton.cdiv(k, block) + 1)
    _tile_starts_kernel[(triton.cdiv(o, _ROWS),)](starts, mask, row_starts, o, k, BLOCK_K=block, ROWS=_ROWS)
    return starts


def tiles_for(x: Tensor, grad_y: Tensor) -> tuple[Tile, ...]:
    """The tiles for operands of these types."""
    return HALF if on_tensor_cores(x, grad_y) else FLOAT


def run_of(tile: Tile) -> int:
    """The rows after which sums are rounded; 0 for float32 proper, whose every addition is."""
    return 0 if tile in FLOAT else RUN


def compiled_operands(kind: str, tile: Tile) -> tuple[dict[str, str], dict[str, int]]:
    """Signature and constants of the arguments that the kernels share, as the compiler sees them."""
    signature = {"x": f"*{kind}:16", "grad_y": f"*{kind}:16", "mask": "*u8:16", "starts": "*i64:16"}
    signature |= {"count": "i32", "o": "i32:16", "k": "i32:16", "x_row": "i32:16", "y_row": "i32:16"}
    constants = {"x_column": 1, "y_column": 1, "BLOCK_O": tile.rows, "BLOCK_K": tile.columns}
    return signature, {**constants, "BLOCK_N": tile.depth, "RUN": run_of(tile), **tile.options}


COMPILED = [
    (
        "_tile_starts_kernel",
        {"starts": "*i64:16", "mask": "*u8:16", "row_starts": "*i64:16", "o": "i32:16", "k": "i32:16"},
        {"BLOCK_K": 64, "ROWS": _ROWS},
    )
]
