"""How the streaming engine cuts tensors: as finely as the memory budget asks and the method allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

ALIGN = 16384  # elements: the blocks in which the operators add up float64 sums
WORD = 64  # elements: what any piece begins at a multiple of; the masks of `ops.dare` come in such words

# What a method must see at once of a tensor: any run of its entries, whole rows (last dimension), or all of it.
CUTS = ("element", "row", "tensor")


@dataclass(frozen=True)
class Piece:
    """A run of a tensor's entries, shaped as the method is to see it; `begin` is the first one, flattened."""

    name: str
    begin: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def cut_tensor(name: str, shape: tuple[int, ...], cut: str, limit: int) -> list[Piece]:
    """Cut one tensor into pieces of about `limit` entries; one that fits is one piece of its own shape.

    Args:
        name: Its key.
        shape: Its shape.
        cut: "element", "row" or "tensor".
        limit: Entries wanted in a piece; runs are whole multiples of ALIGN, or of WORD by rows, and at least one.
    """
    numel = math.prod(shape)
    if numel <= limit or cut == "tensor" or len(shape) == 0:
        return [Piece(name, 0, shape)]
    if cut == "row":
        row = shape[-1]
        rows, unit = numel // row, WORD // math.gcd(row, WORD)
        step = max(unit, limit // row // unit * unit)
        return [Piece(name, r * row, (min(step, rows - r), row)) for r in range(0, rows, step)]
    step = max(ALIGN, limit // ALIGN * ALIGN)
    return [Piece(name, begin, (min(step, numel - begin),)) for begin in range(0, numel, step)]
