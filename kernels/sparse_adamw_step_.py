"""sparse_adamw_step_ in Triton: a launch a tensor, over compact positions (csrc/math/adamw.h)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._selection import selected_entries, selected_range
from taskarith_fast.kernels._sparse_step import (
    compiled,
    fused,
    gradient_factor,
    load_gradient,
    load_weight,
    rounded_product,
    scalar_like,
    store_weight,
    tensors_of,
)
from torch import Tensor


@triton.jit(do_not_specialize=["stream", "step"])
def _sparse_adamw_step_kernel(
    param, grad, master, items, starts, offsets, stream, exp_avg, exp_avg_sq, clip, grad_scale, found_inf, numel,
    decay, rest1, rest2, beta2, root2, eps, rate, step, FAR: tl.constexpr, MAXIMIZE: tl.constexpr,
    COMPACT: tl.constexpr, AT_RANDOM: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    if found_inf is not None:  # noqa: SIM102 - decided at compile time
        if tl.load(found_inf) != 0:
            return
    factor = gradient_factor(clip, grad_scale, MAXIMIZE)
    begin, end = selected_range(offsets, numel, SPLITS, TILE)
    for first in range(begin, end, SPLITS * TILE):
        j = first + tl.arange(0, TILE).to(tl.int64)
        inside = j < end
        entry = selected_entries(items, starts, offsets, j, inside, SPLITS)
        p = load_weight(param, master, entry, j, inside)
        g = load_gradient(grad, entry, j, inside, factor, COMPACT)
        m = tl.load(exp_avg + j, mask=inside, other=0.0)
        v = tl.load(exp_avg_sq + j, mask=inside, other=0.0)
        if FAR:  # from the nearer end, as torch.lerp
            m = fused(scalar_like(rest1 - 1.0, m), g - m, g)
        else:
            m = fused(scalar_like(rest1, m), g - m, m)
        v = fused(rounded_product(scalar_like(rest2, g), g), g, rounded_product(v, scalar_like(beta2, v)))
        denominator = tl.div_rn(tl.sqrt_rn(v), scalar_like(root2, v)) + eps
        move = tl.div_rn(rounded_product(scalar_like(rate, m), m), denominator)
        p = rounded_product(p, scalar_like(decay, p)) + move
        tl.store(exp_avg + j, m, mask=inside)
        tl.store(exp_avg_sq + j, v, mask=inside)
        store_weight(param, master, stream, step, entry, j, inside, p, AT_RANDOM)


def sparse_adamw_step__triton(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    masters: list[Tensor], items: list[Tensor], offsets: list[Tensor], streams: list[int], clip: Tensor | None,
    grad_scale: Tensor | None, found_inf: Tensor | None, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int, maximize: bool,
) -> None:  # fmt: skip
    """The op's own signature; scalars are folded in float64 on the host."""
    scalars = (
        1 - lr * weight_decay, 1 - beta1, 1 - beta2, beta2, (1 - beta2**step) ** 0.5, eps, -(lr / (1 - beta1**step)),
    )  # fmt: skip
    for i, arguments, constants, grid in tensors_of(params, grads, masters, items, offsets, streams):
        with torch.cuda.device_of(params[i]):
            _sparse_adamw_step_kernel[(grid,)](
                *arguments, exp_avgs[i], exp_avg_sqs[i], clip, grad_scale, found_inf, params[i].numel(),
                *scalars, step, FAR=1 - beta1 >= 0.5, MAXIMIZE=maximize, **constants,
            )  # fmt: skip


COMPILED = compiled(
    "_sparse_adamw_step_kernel",
    ("decay", "rest1", "rest2", "beta2", "root2", "eps", "rate"),
    ("exp_avg", "exp_avg_sq"),
    {"FAR": False, "MAXIMIZE": False},
)
