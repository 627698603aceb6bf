"""What several Triton kernels share: exact products on tensor cores, tiles of rows, random bits."""

from __future__ import annotations

import os
import struct

import triton
import triton.language as tl

# The interpreter multiplies bfloat16 tiles wrongly: there they become float32 first, which changes no product.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
FLOAT32 = tl.constexpr("tf32x3")
TF32_BITS = tl.constexpr(-8192)  # sign, exponent and the ten leading bits of a float32


@triton.jit
def product(a, b, total=None):
    """a @ b, plus `total`, in float32 for two tiles of one storage type: products of 16 bits are exact."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=FLOAT32)


@triton.jit
def add_product(total, p, x):
    """total + p @ x for a float32 tile p and a tile x of a storage type.

    Tensor cores round p to their own type. Two products, of the leading bits of p and of the rest, keep 16 bits of p
    for bfloat16 and 22 for float16, whose values TF32 holds exactly.
    """
    if x.dtype == tl.float32:
        total = tl.dot(p, x, total, input_precision=FLOAT32)
    elif x.dtype == tl.bfloat16:
        leading = p.to(tl.bfloat16)
        rest = (p - leading.to(tl.float32)).to(tl.bfloat16)
        if INTERPRETED:
            leading, rest, x = leading.to(tl.float32), rest.to(tl.float32), x.to(tl.float32)
        total = tl.dot(rest, x, tl.dot(leading, x, total))
    else:
        leading = (p.to(tl.int32, bitcast=True) & TF32_BITS).to(tl.float32, bitcast=True)
        x = x.to(tl.float32)
        total = tl.dot(leading, x, total, input_precision="tf32")
        total = tl.dot(p - leading, x, total, input_precision="tf32")
    return total


@triton.jit
def tile(first, stride, count, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, column=0):
    """Where ROWS x COLUMNS values of a matrix [count, WIDTH], from row `first`, lie, and which are inside of it.

    Only the offset of the first row takes 64 bits: `stride` is below 2^24 (see `heads`).
    """
    rows, columns = tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
    inside = rows < count - first
    if WIDTH % COLUMNS != 0:
        inside = inside & (columns < WIDTH)
    return first.to(tl.int64) * stride, rows * stride + columns, inside


@triton.jit
def load_rows(x, first, stride, count, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, column=0):
    """A tile of a matrix, zero outside of it."""
    start, place, inside = tile(first, stride, count, WIDTH, ROWS, COLUMNS, column)
    return tl.load(x + start + place, mask=inside, other=0.0)


@triton.jit
def store_rows(x, first, count, values, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, column=0):
    """Write a tile of a contiguous matrix, rounded to its type."""
    start, place, inside = tile(first, WIDTH, count, WIDTH, ROWS, COLUMNS, column)
    tl.store(x + start + place, values.to(x.dtype.element_ty), mask=inside)


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
