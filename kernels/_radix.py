"""Selection by rank in Triton: the k-th smallest of 32-bit keys, found digit by digit (11, 11 and 10 bits).

Every pass counts, of the keys whose leading digits are known to be right, the next digit; then the digit is chosen that
holds rank ``left``, and the keys before it leave the rank. At the end ``prefix`` is the k-th key itself, ``left`` of
the ``equal`` keys like it belong to the k. A selection is a *cell*: its prefix, left and equal lie in tables of int64,
and the host never asks for them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BINS = tl.constexpr(2048)
PASSES = 3
TILE, TILES = 2048, 8  # entries that are loaded at a time; how often a program does
TIES = 1024  # entries of a program that looks for ties
NAN_MAGNITUDE = tl.constexpr(0x7F800001)
LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def magnitudes(base, finetuned, i, inside):
    """Bits of |finetuned - base| in float32, ordered like it, NaN on top (kth_magnitude.magnitude_bits)."""
    start = tl.load(base + i, mask=inside, other=0.0).to(tl.float32)
    delta = tl.load(finetuned + i, mask=inside, other=0.0).to(tl.float32) - start
    return tl.minimum(delta.to(tl.int32, bitcast=True) & LARGEST, NAN_MAGNITUDE)


@triton.jit
def magnitude_keys(base, finetuned, i, inside):
    """Keys of which the smallest is the largest magnitude."""
    return (magnitudes(base, finetuned, i, inside) ^ LARGEST).to(tl.uint32, bitcast=True)


@triton.jit
def digit_counts(keys, prefix, inside, number):
    """How often each digit `number` follows `prefix` in a tile of keys, int32 [BINS]."""
    known = keys >> ((2 - number) * 21 // 2)  # digits end at bits 21, 10 and 0
    before = known >> (11 - number // 2)
    digits = known - (before << (11 - number // 2))
    return tl.histogram(digits.to(tl.int32), BINS, inside & (before == prefix.to(tl.uint32)))


@triton.jit
def narrowed(counts, prefix, left, number):
    """(prefix, left, equal) after digit `number`, that which holds rank `left`; counts are int64 [BINS]."""
    digit = tl.sum((tl.cumsum(counts, 0) < left).to(tl.int64))
    bins = tl.arange(0, BINS)
    before = tl.sum(tl.where(bins < digit, counts, 0))
    equal = tl.sum(tl.where(bins == digit, counts, 0))
    return (prefix << (11 - number // 2)) + digit, left - before, equal


@triton.jit
def _choose_digit_kernel(counts, prefix, left, equal, number):
    cell = tl.program_id(0).to(tl.int64)
    found = tl.load(counts + cell * BINS + tl.arange(0, BINS))
    chosen = narrowed(found, tl.load(prefix + cell), tl.load(left + cell), number)
    tl.store(prefix + cell, chosen[0])
    tl.store(left + cell, chosen[1])
    tl.store(equal + cell, chosen[2])


def choose_digit(counts: Tensor, prefix: Tensor, left: Tensor, equal: Tensor, number: int) -> None:
    """Narrow every cell by the `counts`, int64 [cells, BINS], of pass `number`, and set them to zero."""
    _choose_digit_kernel[(prefix.numel(),)](counts, prefix, left, equal, number)
    counts.zero_()


COMPILED = [
    (
        "_choose_digit_kernel",
        {"counts": "*i64:16", "prefix": "*i64:16", "left": "*i64:16", "equal": "*i64:16", "number": "i32"},
        {},
    )
]
