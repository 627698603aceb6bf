"""What several Triton kernels share: float32 arithmetic rounded as in C++, random bits, float64."""

from __future__ import annotations

import os
import struct

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def fused(a, b, c):
    """a b + c, rounded once."""
    if INTERPRETED:
        a = tl.zeros_like(c) + a  # scalars are Python's floats there
        result = (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)
    else:
        result = tl.fma(a, b, c)
    return result


@triton.jit
def rounded_product(a, b):
    """a b, rounded by itself: compilers contract a b + c to one rounding, where and as they like."""
    if INTERPRETED:
        result = a * b
    else:
        result = tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], tl.float32, True, 1)
    return result


@triton.jit
def half_word(words, half):
    """Half-word `half` of a Philox block, the lower half of each word first (csrc/math/philox.h)."""
    low = tl.where(half < 2, words[0], words[1])
    high = tl.where(half < 6, words[2], words[3])
    return (tl.where(half < 4, low, high) >> (half % 2 * 16).to(tl.uint32)) & 0xFFFF


@triton.jit
def philox_block(counter, level, key):
    """The four words with counter words (counter mod 2^32, counter / 2^32, level, 0): csrc/math/philox.h."""
    counter = counter.to(tl.uint64)
    low, high = (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32)
    return tl.philox(key, low, high, tl.zeros_like(low) + level, tl.zeros_like(low))


@triton.jit
def load_double(x, place, inside):
    """Values of a storage type in float64."""
    return tl.load(x + place, mask=inside, other=0.0).to(tl.float32).to(tl.float64)


@triton.jit
def join(parts):
    """A float64 number from the two float32 that `split` made of it: launches carry no float64."""
    return tl.cast(parts[0], tl.float64) + tl.cast(parts[1], tl.float64)


def split(number: float) -> tuple[float, float]:
    """The nearest float32, and what is left: 48 bits of a float64."""
    high = struct.unpack("f", struct.pack("f", number))[0]
    return high, number - high
