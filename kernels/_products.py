"""What kernels with matrix products share: the precision of a product, and the size of a tile.

Operands of one 16-bit type go to the tensor cores; all others are widened to float32. Tensor cores cut off the bits
that a sum does not hold, always towards zero, so that long sums drift: of 16 bits, ``RUN`` rows are summed there, then
added with rounding. Float32 has no such slack: dense layers multiply it without tensor cores ("ieee"). Attention's sums
are short, a head's width or a few hundred keys, and take tensor cores for float32 too: three products of parts of 11
bits ("tf32x3"); one ("tf32") would cut 13 of a factor's 24 bits, far outside the error budget.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import INTERPRETED
from torch import Tensor

RUN = 320  # a multiple of every tile's depth; holds the tokens of one image of ViT-L/14
IEEE, TF32X3, TF32 = tl.constexpr("ieee"), tl.constexpr("tf32x3"), tl.constexpr("tf32")


class Tile(NamedTuple):
    """A block's part of the result, and how it is computed: `depth` products an entry in each step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """What a launch takes."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def first_that_fills(tiles: tuple[Tile, ...], rows: int, columns: int, device: torch.device) -> Tile:
    """The first of `tiles`, large to small, that gives every multiprocessor a part of the result; else the last."""
    if device.type != "cuda":
        return tiles[-1]
    blocks = torch.cuda.get_device_properties(device).multi_processor_count
    fitting = (t for t in tiles if triton.cdiv(rows, t.rows) * triton.cdiv(columns, t.columns) >= blocks)
    return next(fitting, tiles[-1])


def on_tensor_cores(*operands: Tensor) -> bool:
    """Whether all operands are of one 16-bit type."""
    return {t.dtype for t in operands} in ({torch.bfloat16}, {torch.float16})


@triton.jit
def add_product(total, a, b, FLOAT32: tl.constexpr = IEEE):
    """total + a b for a float32 tile and two tiles of any storage type; FLOAT32 is the precision of float32 ones."""
    # The interpreter keeps bfloat16 as integers and would multiply those.
    if INTERPRETED or a.dtype != b.dtype:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=FLOAT32)
