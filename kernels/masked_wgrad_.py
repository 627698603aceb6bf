"""masked_wgrad_ in Triton: one block a tile of the weight; of its gradient only selected entries leave the registers.

A tile without a selected entry ends at once. A small kernel counts the selected entries before each tile first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._products import Tile, first_that_fills
from taskarith_fast.kernels._weight_gradient import (
    FLOAT,
    HALF,
    compiled_operands,
    gradient_quarters,
    has_selected,
    run_of,
    selected_places,
    tile_of,
    tile_starts,
    tiles_for,
)
from torch import Tensor


@triton.jit
def _masked_wgrad_kernel(
    values, x, grad_y, mask, starts, count, o, k, x_row, x_column, y_row, y_column,
    BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    across, tile, top, rows, columns = tile_of(k, BLOCK_O, BLOCK_K)
    if has_selected(starts, rows, across, tile, o):
        gradient = gradient_quarters(
            x, grad_y, rows, columns, count, o, k, x_row, x_column, y_row, y_column, BLOCK_O, BLOCK_K, BLOCK_N, RUN
        )
        for i in tl.static_range(4):
            part = top + i * (BLOCK_O // 4) + tl.arange(0, BLOCK_O // 4)
            selected, place = selected_places(mask, starts, part, columns, across, tile, o, k)
            before = tl.load(values + place, mask=selected, other=0.0)
            tl.store(values + place, before + gradient[i], mask=selected)


def masked_wgrad__triton(values: Tensor, x: Tensor, grad_y: Tensor, mask: Tensor, row_starts: Tensor) -> None:
    """The op's own signature: `values` [count], `x` [N, k], `grad_y` [N, o], packed `mask` [o, k], one device."""
    (n, k), o = x.shape, grad_y.shape[1]
    if not values.numel() or not n:
        return
    tile = first_that_fills(tiles_for(x, grad_y), o, k, x.device)
    with torch.cuda.device_of(values):
        _masked_wgrad_kernel[(triton.cdiv(o, tile.rows) * triton.cdiv(k, tile.columns),)](
            values, x, grad_y, mask, tile_starts(mask, row_starts, k, tile.columns), n, o, k, *x.stride(),
            *grad_y.stride(), BLOCK_O=tile.rows, BLOCK_K=tile.columns, BLOCK_N=tile.depth, RUN=run_of(tile),
            **tile.options,
        )  # fmt: skip


def _compiled(kind: str, tile: Tile) -> tuple[str, dict[str, str], dict[str, int]]:
    signature, constants = compiled_operands(kind, tile)
    return "_masked_wgrad_kernel", {"values": "*fp32:16", **signature}, constants


COMPILED = [
    *[_compiled("fp32", tile) for tile in FLOAT],
    *[_compiled("bf16", tile) for tile in HALF],
    _compiled("fp16", HALF[0]),
]
