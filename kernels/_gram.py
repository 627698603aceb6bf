"""Gram matrices and projections of many matrices D, or of their differences from a base, on float64's tensor cores.

Weights in float32 are widened, and their differences taken, in registers: no copy in float64 is made. Those of 16 bits
are widened to float32 before, for Triton multiplies no float64 that it finds to come from 16 bits. Of a Gram matrix the
tiles on and above the diagonal are computed; the others are their mirror images.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._common import load_double
from taskarith_fast.kernels._products import Tile
from torch import Tensor

from taskarith_fast.ops.truncated_svd import leading_factors

TILE = Tile(64, 64, 16, 8, 3)


@triton.jit
def matrix_of(matrices, number, each, stride):
    """Where matrix `number` starts: `each` of them, `stride` apart, lie in every tensor of the tuple."""
    tensor, within = number // each, (number % each).to(tl.int64) * stride
    start = matrices[0] + within
    for t in tl.static_range(1, len(matrices)):
        if tensor == t:
            start = matrices[t] + within
    return start


@triton.jit
def load_difference(matrix, base, place, inside):
    """Entries of D in float64; an absent base is zero."""
    value = load_double(matrix, place, inside)
    if base is not None:
        value -= load_double(base, place, inside)
    return value


@triton.jit
def _gram_kernel(
    gram, matrices, base, each, stride, m, n, row, column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(n, BLOCK_N)
    number, tile = tl.program_id(0) // (across * across), tl.program_id(0) % (across * across)
    top, left = tile // across, tile % across
    if top <= left:
        matrix = matrix_of(matrices, number, each, stride)
        rows = top.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        columns = left.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_N, BLOCK_N), tl.float64)
        for first in range(0, m, BLOCK_M):
            at = first + tl.arange(0, BLOCK_M).to(tl.int64)
            one = load_difference(
                matrix, base, rows[:, None] * column + at[None, :] * row, (rows < n)[:, None] & (at < m)[None, :]
            )
            two = load_difference(
                matrix, base, at[:, None] * row + columns[None, :] * column, (at < m)[:, None] & (columns < n)[None, :]
            )
            total = tl.dot(one, two, total, out_dtype=tl.float64)
        out = gram + number.to(tl.int64) * n * n
        inside = (rows < n)[:, None] & (columns < n)[None, :]
        tl.store(out + rows[:, None] * n + columns[None, :], total, mask=inside)
        if top < left:
            tl.store(out + columns[None, :] * n + rows[:, None], total, mask=inside)


@triton.jit
def _project_kernel(
    product, matrices, base, vectors, each, stride, m, n, r, row, column,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(r, BLOCK_R)
    tiles = tl.cdiv(m, BLOCK_M) * across
    number, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    matrix = matrix_of(matrices, number, each, stride)
    rows = ((tile // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    columns = (tile % across * BLOCK_R + tl.arange(0, BLOCK_R))[None, :]
    vectors += number.to(tl.int64) * n * r
    total = tl.zeros((BLOCK_M, BLOCK_R), tl.float64)
    for first in range(0, n, BLOCK_N):
        at = first + tl.arange(0, BLOCK_N).to(tl.int64)
        entries = load_difference(matrix, base, rows * row + at[None, :] * column, (rows < m) & (at < n)[None, :])
        vector = tl.load(vectors + at[:, None] * r + columns, mask=(at < n)[:, None] & (columns < r), other=0.0)
        total = tl.dot(entries, vector, total, out_dtype=tl.float64)
    out = product + number.to(tl.int64) * m * r
    tl.store(out + rows * r + columns, total, mask=(rows < m) & (columns < r))


class Differences:
    """Matrices less their base, tall [M, N] (transposed if they are wide), that are seen only through products.

    Args:
        matrices: Tensors of one type, shape [m, n] or [L, m, n], and strides.
        base: None, or of the type, shape and strides [m, n] of all `matrices`.
    """

    def __init__(self, matrices: tuple[Tensor, ...], base: Tensor | None = None) -> None:
        self.matrices, self.base = tuple(d.float() for d in matrices), None if base is None else base.float()
        first = self.matrices[0]
        self.wide = first.shape[-2] < first.shape[-1]
        tall = first.mT if self.wide else first
        self.shape, self.steps = tall.shape[-2:], tall.stride()[-2:]
        self.each, self.stride = (len(first), first.stride(0)) if first.dim() == 3 else (1, 0)
        self.count = self.each * len(matrices)

    def gram(self, out: Tensor) -> None:
        """Their Gram matrices into `out` [count, N, N], contiguous float64."""
        m, n = self.shape
        with torch.cuda.device_of(out):
            _gram_kernel[(self.count * triton.cdiv(n, TILE.rows) ** 2,)](
                out, self.matrices, self.base, self.each, self.stride, m, n, *self.steps,
                BLOCK_M=TILE.depth, BLOCK_N=TILE.rows, **TILE.options,
            )  # fmt: skip

    def project(self, vectors: Tensor, out: Tensor) -> None:
        """Their products with `vectors` [count, N, r] into `out` [count, M, r], both contiguous float64."""
        (m, n), r = self.shape, vectors.shape[-1]
        with torch.cuda.device_of(out):
            _project_kernel[(self.count * triton.cdiv(m, TILE.rows) * triton.cdiv(r, TILE.columns),)](
                out, self.matrices, self.base, vectors, self.each, self.stride, m, n, r, *self.steps,
                BLOCK_M=TILE.rows, BLOCK_R=TILE.columns, BLOCK_N=TILE.depth, **TILE.options,
            )  # fmt: skip


def factors_of(parts: list[Differences], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [count, m, r], S [count, r] and Vh [count, r, n], float64, of parts of one shape, one after the other."""
    (m, n), device = parts[0].shape, parts[0].matrices[0].device
    counts = [part.count for part in parts]
    gram = torch.empty(sum(counts), n, n, dtype=torch.float64, device=device)
    for part, out in zip(parts, gram.split(counts), strict=True):
        part.gram(out)

    def project(vectors: Tensor) -> Tensor:
        product = vectors.new_empty(len(vectors), m, rank)
        for part, some, out in zip(parts, vectors.split(counts), product.split(counts), strict=True):
            part.project(some, out)
        return product

    return leading_factors(gram, project, rank, wide=parts[0].wide)


def _compiled(tasks: int, *, wide: bool) -> list[tuple[str, dict[str, str], dict[str, int | None]]]:
    """Both launches for one batch, or for the differences of `tasks` matrices from a base."""
    shared = {"matrices": ("*fp32:16",) * max(tasks, 1), "each": "i32", "stride": "i32:16", "m": "i32:16"}
    shared |= {"n": "i32:16", "column" if wide else "row": "i32:16"} | ({"base": "*fp32:16"} if tasks else {})
    constants: dict[str, int | None] = {"row" if wide else "column": 1, **TILE.options} | (
        {} if tasks else {"base": None}
    )
    gram = {"BLOCK_M": TILE.depth, "BLOCK_N": TILE.rows}
    project = {"BLOCK_M": TILE.rows, "BLOCK_R": TILE.columns, "BLOCK_N": TILE.depth}
    product = {"product": "*fp64:16", "vectors": "*fp64:16", "r": "i32"}
    return [
        ("_gram_kernel", shared | {"gram": "*fp64:16"}, constants | gram),
        ("_project_kernel", shared | product, constants | project),
    ]


COMPILED = [launch for tasks in (0, 8) for wide in (False, True) for launch in _compiled(tasks, wide=wide)]
