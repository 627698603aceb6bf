"""sparse_sgd_step_ in Triton: a launch a tensor, over compact positions (csrc/math/sgd.h)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import fused, rounded_product
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
def _sparse_sgd_step_kernel(
    param, grad, master, items, offsets, RUNS: tl.constexpr, stream, buffer, clip, grad_scale, found_inf, numel,
    weight_decay, momentum, lr, folded, index, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr,
    COMPACT: tl.constexpr, AT_RANDOM: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    if found_inf is not None:  # noqa: SIM102 - decided at compile time
        if tl.load(found_inf) != 0:
            return
    factor = gradient_factor(clip, grad_scale, MAXIMIZE)
    number, rest = tl.load(folded + 2 * index), tl.load(folded + 2 * index + 1).to(tl.float32)
    begin, end = selected_range(offsets, numel, SPLITS, TILE)
    for first in range(begin, end, SPLITS * TILE):
        j = first + tl.arange(0, TILE).to(tl.int64)
        inside = j < end
        entry = selected_entries(items, offsets, j, inside, RUNS, SPLITS)
        p = load_weight(param, master, entry, j, inside)
        g = load_gradient(grad, entry, j, inside, factor, COMPACT)
        g = fused(weight_decay, p, g)
        if buffer is not None:
            b = tl.load(buffer + j, mask=inside, other=0.0)
            b = fused(rest, g, rounded_product(b, momentum))
            tl.store(buffer + j, b, mask=inside)
            if NESTEROV:
                g = fused(momentum, b, g)
            else:
                g = b
        p = fused(lr, g, p)
        store_weight(param, master, stream, number, entry, j, inside, p, AT_RANDOM)


def sparse_sgd_step__triton(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], masters: list[Tensor], items: list[Tensor],
    offsets: list[Tensor], streams: list[int], clip: Tensor | None, grad_scale: Tensor | None,
    found_inf: Tensor | None, lr: float, momentum: float, dampening: float, weight_decay: float, nesterov: bool,
    steps: list[Tensor], step: int, maximize: bool,
) -> None:  # fmt: skip
    """The op's own signature."""
    if not params:
        return
    numbers = numbers_of(params, steps, step)
    folded = torch.stack((numbers, torch.where(numbers == 1, 1.0, 1 - dampening)), 1)
    for i, arguments, constants, grid in tensors_of(params, grads, masters, items, offsets, streams):
        with torch.cuda.device_of(params[i]):
            _sparse_sgd_step_kernel[(grid,)](
                *arguments, buffers[i] if buffers else None, clip, grad_scale, found_inf, params[i].numel(),
                weight_decay, momentum, -lr, folded, i, NESTEROV=nesterov, MAXIMIZE=maximize, **constants,
            )  # fmt: skip


COMPILED = compiled(
    "_sparse_sgd_step_kernel",
    ("weight_decay", "momentum", "lr"),
    ("buffer",),
    {"NESTEROV": True, "MAXIMIZE": False},
)
