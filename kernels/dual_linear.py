"""dual_linear in Triton: y and dy of one tile of the output together, so that each tile of x and W is read once.

What is absent (a tangent, a bias, y itself) is compiled away.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._products import Tile, add_product, first_that_fills, on_tensor_cores
from torch import Tensor

_FLOAT = (Tile(128, 64, 16, 8, 3), Tile(64, 64, 16, 8, 3))
_HALF = (Tile(128, 128, 32, 8, 4), Tile(64, 128, 32, 4, 3), Tile(64, 64, 32, 4, 3))
_BAND = 8  # tiles of rows that are walked together, so that their x and W stay in the cache


@triton.jit
def _dual_linear_kernel(
    y, dy, x, dx, weight, bias, dweight, dbias, count, o, k,
    x_row, x_column, dx_row, dx_column, w_row, w_column, dw_row, dw_column,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(o, BLOCK_O)
    band = tl.program_id(0) // (BAND * across)
    height = tl.minimum(tl.cdiv(count, BLOCK_M) - band * BAND, BAND)
    within = tl.program_id(0) % (BAND * across)
    rows = (band * BAND + within % height).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (within // height).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    inner = tl.arange(0, BLOCK_K).to(tl.int64)
    value = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
    tangent = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
    for first in range(0, k, BLOCK_K):
        at = first + inner
        x_inside = (rows < count)[:, None] & (at < k)[None, :]
        w_inside = (at < k)[:, None] & (columns < o)[None, :]
        if y is not None or dweight is not None:
            xs = tl.load(x + rows[:, None] * x_row + at[None, :] * x_column, mask=x_inside, other=0.0)
        if y is not None or dx is not None:
            ws = tl.load(weight + at[:, None] * w_column + columns[None, :] * w_row, mask=w_inside, other=0.0)
        if y is not None:
            value = add_product(value, xs, ws)
        if dx is not None:
            dxs = tl.load(dx + rows[:, None] * dx_row + at[None, :] * dx_column, mask=x_inside, other=0.0)
            tangent = add_product(tangent, dxs, ws)
        if dweight is not None:
            dws = tl.load(dweight + at[:, None] * dw_column + columns[None, :] * dw_row, mask=w_inside, other=0.0)
            tangent = add_product(tangent, xs, dws)
    place = rows[:, None] * o + columns[None, :]
    inside = (rows < count)[:, None] & (columns < o)[None, :]
    if y is not None:
        if bias is not None:
            value += tl.load(bias + columns, mask=columns < o, other=0.0).to(tl.float32)[None, :]
        tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)
    if dbias is not None:
        tangent += tl.load(dbias + columns, mask=columns < o, other=0.0).to(tl.float32)[None, :]
    tl.store(dy + place, tangent.to(dy.dtype.element_ty), mask=inside)


def dual_linear_triton(
    x: Tensor, dx: Tensor | None, weight: Tensor, bias: Tensor | None, dweight: Tensor | None, dbias: Tensor | None,
    with_value: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op's own signature: `x` and `dx` [M, k], `weight` and `dweight` [o, k], the biases [o], one device."""
    (m, k), o = x.shape, len(weight)
    y, dy = x.new_empty((m, o) if with_value else (0,)), x.new_empty(m, o)
    if not dy.numel():
        return y, dy
    operands = [t for t in (x, dx, weight, dweight) if t is not None]
    tiles = _HALF if on_tensor_cores(*operands) else _FLOAT
    if with_value and dx is None:
        tiles = tiles[1:]  # the largest would spill registers on sm_80
    tile = first_that_fills(tiles, m, o, x.device)
    bias, dbias = (None if t is None else t.contiguous() for t in (bias, dbias))
    strides = [s for t in (x, dx, weight, dweight) for s in ((0, 0) if t is None else t.stride())]
    with torch.cuda.device_of(x):
        _dual_linear_kernel[(triton.cdiv(m, tile.rows) * triton.cdiv(o, tile.columns),)](
            y if with_value else None, dy, x, dx, weight, bias, dweight, dbias, m, o, k, *strides,
            BLOCK_M=tile.rows, BLOCK_O=tile.columns, BLOCK_K=tile.depth, BAND=_BAND, **tile.options,
        )  # fmt: skip
    return y, dy


def _compiled(kind: str, tile: Tile, present: str) -> tuple[str, dict[str, str], dict[str, int | None]]:
    """One launch as the compiler sees it; `present` names what is not absent."""
    names, signature = present.split(), {"count": "i32", "o": "i32:16", "k": "i32:16"}
    signature |= {name: f"*{kind}:16" for name in ("dy", "x", "weight", *names)}
    strides = {"x": "x", "dx": "dx", "weight": "w", "dweight": "dw"}
    signature |= {f"{strides[name]}_row": "i32:16" for name in strides if name in signature}
    constants: dict[str, int | None] = {
        name: None for name in ("y", "dx", "bias", "dweight", "dbias") if name not in names
    }
    constants |= {f"{s}_row": 0 for s in strides.values() if f"{s}_row" not in signature}
    constants |= {f"{s}_column": int(f"{s}_row" in signature) for s in strides.values()}
    sides = {"BLOCK_M": tile.rows, "BLOCK_O": tile.columns, "BLOCK_K": tile.depth, "BAND": _BAND}
    return "_dual_linear_kernel", signature, {**constants, **sides, **tile.options}


COMPILED = [
    *[_compiled("fp32", tile, "y dx bias dweight dbias") for tile in _FLOAT],
    *[_compiled("bf16", tile, "y dx bias dweight dbias") for tile in _HALF],
    *[_compiled("bf16", tile, "y bias dweight dbias") for tile in _HALF[1:]],
    *[_compiled("bf16", _HALF[0], present) for present in ("y dx bias", "dx dweight dbias", "dx", "dweight")],
    _compiled("fp16", _HALF[0], "y dx bias dweight dbias"),
]
