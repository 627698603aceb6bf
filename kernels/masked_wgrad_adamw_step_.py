"""masked_wgrad_adamw_step_ in Triton: the optimizer's step is the epilogue of the weight gradient.

As masked_wgrad_, but what leaves the registers are the stepped weight and its moments.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._adamw import adamw, fold_adamw
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
def _masked_wgrad_adamw_step_kernel(
    param, exp_avg, exp_avg_sq, master, x, grad_y, mask, starts, count, o, k, x_row, x_column, y_row, y_column,
    sign, decay, rest1, rest2, beta2, eps, root2, rate,
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
            weight = param + part[:, None] * k + columns[None, :]
            m = tl.load(exp_avg + place, mask=selected, other=0.0)
            v = tl.load(exp_avg_sq + place, mask=selected, other=0.0)
            if master is None:
                p = tl.load(weight, mask=selected, other=0.0).to(tl.float32)
            else:
                p = tl.load(master + place, mask=selected, other=0.0)
            p, m, v = adamw(p, gradient[i] * sign, m, v, decay, rest1, rest2, beta2, eps, root2, rate)
            tl.store(exp_avg + place, m, mask=selected)
            tl.store(exp_avg_sq + place, v, mask=selected)
            if master is not None:
                tl.store(master + place, p, mask=selected)
            tl.store(weight, p.to(param.dtype.element_ty), mask=selected)


def masked_wgrad_adamw_step__triton(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None, x: Tensor, grad_y: Tensor,
    mask: Tensor, row_starts: Tensor, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    step: int, maximize: bool,
) -> None:  # fmt: skip
    """The op's own signature: `param` [o, k], the states [count], `x` [N, k], `grad_y` [N, o], one device."""
    (n, k), o = x.shape, grad_y.shape[1]
    if not exp_avg.numel():
        return
    tile = first_that_fills(tiles_for(x, grad_y)[1:], o, k, x.device)  # the largest would spill registers
    with torch.cuda.device_of(param):
        _masked_wgrad_adamw_step_kernel[(triton.cdiv(o, tile.rows) * triton.cdiv(k, tile.columns),)](
            param, exp_avg, exp_avg_sq, master, x, grad_y, mask, tile_starts(mask, row_starts, k, tile.columns),
            n, o, k, *x.stride(), *grad_y.stride(), -1.0 if maximize else 1.0,
            *fold_adamw(lr, beta1, beta2, eps, weight_decay, step),
            BLOCK_O=tile.rows, BLOCK_K=tile.columns, BLOCK_N=tile.depth, RUN=run_of(tile), **tile.options,
        )  # fmt: skip


def _compiled(param: str, kind: str, tile: Tile, master: bool) -> tuple[str, dict[str, str], dict[str, int | None]]:
    signature, constants = compiled_operands(kind, tile)
    signature |= {"param": f"*{param}:16", "exp_avg": "*fp32:16", "exp_avg_sq": "*fp32:16"}
    signature |= dict.fromkeys(("sign", "decay", "rest1", "rest2", "beta2", "eps", "root2", "rate"), "fp32")
    if master:
        return "_masked_wgrad_adamw_step_kernel", {**signature, "master": "*fp32:16"}, constants
    return "_masked_wgrad_adamw_step_kernel", signature, {**constants, "master": None}


COMPILED = [
    _compiled("fp32", "fp32", FLOAT[1], False),
    *[_compiled("bf16", "bf16", tile, True) for tile in HALF[1:]],
    _compiled("fp32", "fp16", HALF[1], False),
]
