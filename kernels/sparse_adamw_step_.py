"""sparse_adamw_step_ in Triton: a launch a tensor, over compact positions (csrc/math/adamw.h)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._adamw import adamw, fold_adamw
from taskarith_fast.kernels._selection import selected_entries, selected_range
from taskarith_fast.kernels._sparse_step import (
    compiled,
    gradient_factor,
    load_gradient,
    load_weight,
    numbers_of,
    store_weight,
    tensors_of,
)
from torch import Tensor


@triton.jit(do_not_specialize=["stream", "index"])
def _sparse_adamw_step_kernel(
    param, grad, master, items, offsets, RUNS: tl.constexpr, stream, exp_avg, exp_avg_sq, clip, grad_scale, found_inf,
    numel, decay, rest1, rest2, beta2, eps, folded, index, MAXIMIZE: tl.constexpr, COMPACT: tl.constexpr,
    AT_RANDOM: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    if found_inf is not None:  # noqa: SIM102 - decided at compile time
        if tl.load(found_inf) != 0:
            return
    factor = gradient_factor(clip, grad_scale, MAXIMIZE)
    number = tl.load(folded + 3 * index)
    root2, rate = tl.load(folded + 3 * index + 1).to(tl.float32), tl.load(folded + 3 * index + 2).to(tl.float32)
    begin, end = selected_range(offsets, numel, SPLITS, TILE)
    for first in range(begin, end, SPLITS * TILE):
        j = first + tl.arange(0, TILE).to(tl.int64)
        inside = j < end
        entry = selected_entries(items, offsets, j, inside, RUNS, SPLITS)
        p = load_weight(param, master, entry, j, inside)
        g = load_gradient(grad, entry, j, inside, factor, COMPACT)
        m = tl.load(exp_avg + j, mask=inside, other=0.0)
        v = tl.load(exp_avg_sq + j, mask=inside, other=0.0)
        p, m, v = adamw(p, g, m, v, decay, rest1, rest2, beta2, eps, root2, rate)
        tl.store(exp_avg + j, m, mask=inside)
        tl.store(exp_avg_sq + j, v, mask=inside)
        store_weight(param, master, stream, number, entry, j, inside, p, AT_RANDOM)


def sparse_adamw_step__triton(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    masters: list[Tensor], items: list[Tensor], offsets: list[Tensor], streams: list[int], clip: Tensor | None,
    grad_scale: Tensor | None, found_inf: Tensor | None, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, steps: list[Tensor], step: int, maximize: bool,
) -> None:  # fmt: skip
    """The op's own signature."""
    if not params:
        return
    numbers = numbers_of(params, steps, step)
    *scalars, root2, rate = fold_adamw(lr, beta1, beta2, eps, weight_decay, numbers)
    folded = torch.stack((numbers, root2, rate), 1)
    for i, arguments, constants, grid in tensors_of(params, grads, masters, items, offsets, streams):
        with torch.cuda.device_of(params[i]):
            _sparse_adamw_step_kernel[(grid,)](
                *arguments, exp_avgs[i], exp_avg_sqs[i], clip, grad_scale, found_inf, params[i].numel(),
                *scalars, folded, i, MAXIMIZE=maximize, **constants,
            )  # fmt: skip


COMPILED = compiled(
    "_sparse_adamw_step_kernel",
    ("decay", "rest1", "rest2", "beta2", "eps"),
    ("exp_avg", "exp_avg_sq"),
    {"MAXIMIZE": False},
)
