"""What the optimizers' steps share in Triton: factor and step number, values in and out, random rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import half_word, philox_block, rounded_product
from taskarith_fast.kernels._selection import FORMS, SPLITS, TILE, programs, selection_arguments
from torch import Tensor


@triton.jit
def gradient_factor(clip, grad_scale, MAXIMIZE: tl.constexpr):
    """What every gradient is multiplied with: clipping, the inverse of the loss scale, the sign."""
    factor = tl.full([], -1.0 if MAXIMIZE else 1.0, tl.float32)
    if clip is not None:
        factor *= tl.load(clip)
    if grad_scale is not None:
        factor = tl.div_rn(factor, tl.load(grad_scale))
    return factor


@triton.jit
def load_weight(param, master, entry, j, inside):
    """The weights that are updated: master copies, or the parameter's own."""
    if master is not None:
        p = tl.load(master + j, mask=inside, other=0.0)
    else:
        p = tl.load(param + entry, mask=inside, other=0.0).to(tl.float32)
    return p


@triton.jit
def load_gradient(grad, entry, j, inside, factor, COMPACT: tl.constexpr):
    """Gradients in float32, times `factor`; compact ones lie at j."""
    place = j if COMPACT else entry
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    return rounded_product(g, factor)


@triton.jit
def store_weight(param, master, stream, number, entry, j, inside, p, AT_RANDOM: tl.constexpr):
    """New weights p into the parameter, rounded to nearest or at random, and into the master copies."""
    if master is not None:
        tl.store(master + j, p, mask=inside)
    if AT_RANDOM:
        words = philox_block(j // 8, number.to(tl.int64).to(tl.uint32), tl.cast(stream, tl.int64))
        p = _round_at_random(p, half_word(words, j % 8), param.dtype.element_ty)
    tl.store(param + entry, p.to(param.dtype.element_ty), mask=inside)


@triton.jit
def _round_at_random(x, random, KIND: tl.constexpr):
    """A value of KIND next to x, by the 16 random bits (csrc/math/stochastic_rounding.h)."""
    bits = x.to(tl.uint32, bitcast=True)
    if KIND == tl.bfloat16:  # noqa: SIM300
        fixed = (bits & 0x7F800000) == 0x7F800000
        rounded = (bits + random) & 0xFFFF0000
    else:
        fixed, rounded = _round_to_float16(bits, random)
    return tl.where(fixed, x, rounded.to(tl.float32, bitcast=True))


@triton.jit
def _round_to_float16(bits, random):
    magnitude = bits & 0x7FFFFFFF
    exponent = tl.maximum((magnitude >> 23).to(tl.int32), 113)  # float16's smallest is 2^-14
    quantum = ((exponent - 10) << 23).to(tl.float32, bitcast=True)
    inverse = ((264 - tl.minimum(exponent, 142)) << 23).to(tl.float32, bitcast=True)
    units = magnitude.to(tl.float32, bitcast=True) * inverse
    whole = tl.floor(units)
    whole += (units - whole > random.to(tl.float32) * 1.52587890625e-05).to(tl.float32)
    return exponent > 142, (whole * quantum).to(tl.uint32, bitcast=True) | (bits & 0x80000000)


def numbers_of(params: list[Tensor], steps: list[Tensor], step: int) -> Tensor:
    """The number of every parameter's step, float64 [L], formed on the device: nothing waits, a graph counts on."""
    if steps:
        return torch.cat([done.reshape(1) for done in steps]).double() + 1
    return torch.full((len(params),), step, dtype=torch.float64, device=params[0].device)


def tensors_of(
    params: list[Tensor], grads: list[Tensor], masters: list[Tensor], items: list[Tensor], offsets: list[Tensor],
    streams: list[int],
) -> Iterator[tuple[int, tuple[Any, ...], dict[str, Any], int]]:  # fmt: skip
    """Index, arguments, constants and grid of every parameter that has entries."""
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if not param.numel():
            continue
        at_random = bool(streams) and param.dtype != torch.float32
        master = masters[i] if masters else None
        selection = selection_arguments(items[i], offsets[i])
        arguments = (param, grad.contiguous(), master, *selection, streams[i] if at_random else 0)
        constants = {"COMPACT": grad.numel() != param.numel(), "AT_RANDOM": at_random, "SPLITS": SPLITS, "TILE": TILE}
        yield i, arguments, constants, programs(param.numel())


def compiled(name: str, scalars: tuple[str, ...], states: tuple[str, ...], flags: dict[str, bool]) -> list[tuple]:
    """COMPILED of a step's kernel: types of parameters, forms of selection, gradient and rounding."""
    all_entries, positions, runs = FORMS
    pointers = {"clip": "*fp32", "grad_scale": "*fp32", "found_inf": "*fp32", "folded": "*fp64:16"}
    cases = []
    for kind, master, (form, absent), at_random in (
        ("fp32", False, positions, False),
        ("fp32", False, all_entries, False),
        ("bf16", False, runs, True),
        ("fp16", False, positions, True),
        ("bf16", True, positions, False),
    ):
        signature = {"param": f"*{kind}:16", "grad": f"*{kind}:16", **form, "stream": "i64", "numel": "i32"}
        signature |= dict.fromkeys(states, "*fp32:16") | pointers | dict.fromkeys(scalars, "fp32") | {"index": "i32"}
        signature |= {"master": "*fp32:16"} if master else {}
        constants = {"COMPACT": False, "AT_RANDOM": at_random, "SPLITS": SPLITS, "TILE": TILE, **absent, **flags}
        cases.append((name, signature, constants if master else {**constants, "master": None}))
    return cases
