"""fisher_diag_ in Triton: one block a tile of the weight; per-sample gradients are squared where they are summed.

The loops over samples and their tokens are one loop, so that loads run ahead across the ends of samples.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._products import RUN, Tile, add_product, first_that_fills, on_tensor_cores
from torch import Tensor

_FLOAT = (Tile(128, 128, 16, 8, 3), Tile(64, 64, 16, 4, 3))
_SHORT = (Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 4, 3))
_LONG = _SHORT[1:]  # one more sum a sample


@triton.jit
def _fisher_diag_kernel(
    fisher, x, grad_y, scale, samples, tokens, o, k,
    x_sample, x_token, x_column, y_sample, y_token, y_column,
    BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(k, BLOCK_K)
    tile = tl.program_id(0)
    rows = (tile // across).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    columns = (tile % across).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    token = tl.arange(0, BLOCK_S)
    y_tile = grad_y + rows[:, None] * y_column + token[None, :].to(tl.int64) * y_token
    x_tile = x + token[:, None].to(tl.int64) * x_token + columns[None, :] * x_column
    squares = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    gradient = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    run = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    steps = tl.cdiv(tokens, BLOCK_S)
    for step in range(samples * steps):
        sample = (step // steps).to(tl.int64)
        first = (step % steps) * BLOCK_S
        inside = token < tokens - first
        start = first.to(tl.int64)
        ys = tl.load(
            y_tile + (sample * y_sample + start * y_token), mask=(rows < o)[:, None] & inside[None, :], other=0.0
        )
        xs = tl.load(
            x_tile + (sample * x_sample + start * x_token), mask=inside[:, None] & (columns < k)[None, :], other=0.0
        )
        run = add_product(run, ys, xs)
        ends = first + BLOCK_S >= tokens
        if RUN == 0:
            if ends:
                squares += run * run
                run = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
        elif ends | ((first + BLOCK_S) % RUN == 0):
            gradient += run
            run = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
            if ends:
                squares += gradient * gradient
                gradient = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    out = fisher + rows[:, None] * k + columns[None, :]
    inside = (rows < o)[:, None] & (columns < k)[None, :]
    tl.store(out, tl.load(out, mask=inside, other=0.0) + scale * squares, mask=inside)


def fisher_diag__triton(fisher: Tensor, x: Tensor, grad_y: Tensor, scale: float) -> None:
    """The op's own signature: `fisher` [o, k], `x` [B, S, k], `grad_y` [B, S, o], one device."""
    (samples, tokens, k), o = x.shape, grad_y.shape[-1]
    if not fisher.numel() or not samples * tokens:
        return
    tiles = _FLOAT
    if on_tensor_cores(x, grad_y):
        tiles = _LONG if tokens > RUN else _SHORT
    tile = first_that_fills(tiles, o, k, x.device)
    with torch.cuda.device_of(fisher):
        _fisher_diag_kernel[(triton.cdiv(o, tile.rows) * triton.cdiv(k, tile.columns),)](
            fisher, x, grad_y, scale, samples, tokens, o, k, *x.stride(), *grad_y.stride(),
            BLOCK_O=tile.rows, BLOCK_K=tile.columns, BLOCK_S=tile.depth, RUN=RUN if tiles is _LONG else 0,
            **tile.options,
        )  # fmt: skip


def _compiled(x: str, y: str, tile: Tile, run: int) -> tuple[str, dict[str, str], dict[str, int]]:
    signature = {"fisher": "*fp32:16", "x": f"*{x}:16", "grad_y": f"*{y}:16", "scale": "fp32"}
    signature |= {"samples": "i32", "tokens": "i32", "o": "i32:16", "k": "i32:16"}
    signature |= dict.fromkeys(("x_sample", "x_token", "y_sample", "y_token"), "i32:16")
    constants = {"x_column": 1, "y_column": 1, "BLOCK_O": tile.rows, "BLOCK_K": tile.columns, "BLOCK_S": tile.depth}
    return "_fisher_diag_kernel", signature, {**constants, "RUN": run, **tile.options}


COMPILED = [
    *[_compiled("fp32", "fp32", tile, 0) for tile in _FLOAT],
    *[_compiled("bf16", "bf16", tile, 0) for tile in _SHORT],
    *[_compiled("bf16", "bf16", tile, RUN) for tile in _LONG],
    _compiled("fp32", "bf16", _FLOAT[0], 0),
    _compiled("fp16", "fp16", _SHORT[0], 0),
]
