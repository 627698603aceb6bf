"""What is trained of a tangent: all of it, the entries of a mask, or two thin factors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from taskarith_fast.ops.pack_bits import pack_bits
from taskarith_fast.ops.unpack_bits import unpack_bits


class Tangent(Protocol):
    """A module that makes the tangent of one parameter from what is trained."""

    def __call__(self) -> Tensor:
        """The tangent, of the parameter's shape."""

    def parts(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters with names for an optimizer; `name` is that of the parameter."""


class DenseTangent(nn.Module):
    """A tangent with one trained number a weight, or a weight under the mask; it starts at 0.

    Args:
        weight: The parameter it belongs to.
        mask: True = trained, shape of the weight; None trains all. Kept as bits.
    """

    def __init__(self, weight: Tensor, mask: Tensor | None = None) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros_like(weight, memory_format=torch.contiguous_format))
        self.shape = tuple(weight.shape)
        self.register_buffer("bits", None if mask is None else pack_bits([mask.to(weight.device)])[0])

    def forward(self) -> Tensor:
        """The tangent, exactly 0 outside the mask, and so is its gradient."""
        return self.value if self.bits is None else torch.where(self.mask(), self.value, 0.0)

    def mask(self) -> Tensor:
        """The mask, bool, of the weight's shape."""
        return unpack_bits([self.bits], [self.shape])[0]  # type: ignore[list-item]

    def parts(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters with names for an optimizer."""
        yield name, self.value


class LowRankTangent(nn.Module):
    """A tangent of a matrix, left @ right: left [m, r] starts at 0, right [r, n] at random, variance 1 / n.

    Args:
        weight: The matrix it belongs to, [m, n].
        rank: r.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.right = nn.Parameter(torch.randn_like(weight[:rank]) * weight.shape[1] ** -0.5)

    def forward(self) -> Tensor:
        """The tangent [m, n]; the product costs little beside those of a batch."""
        return self.left @ self.right

    def parts(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters with names for an optimizer."""
        yield f"{name}.left", self.left
        yield f"{name}.right", self.right
