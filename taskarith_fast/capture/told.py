"""What an observer is told of one parameter in a backward pass: one use of it, or the sum of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskarith_fast.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Told:
    """One use: roles and formulas are those of ``capture.uses``."""

    role: str
    x: Any
    grad_y: Tensor

    def whole(self) -> Told:
        """The batch [B, S, ...] as one sample [1, B S, ...]."""
        return Told(self.role, None if self.x is None else self.x.flatten(0, 1)[None], self.grad_y.flatten(0, 1)[None])


def dense(x: Tensor, grad_y: Tensor) -> Told:
    """y = x W^T."""
    return Told("dense", x, grad_y)


def told(role: str, x: Tensor, grad_y: Tensor) -> Told:
    """A use by its role; "transposed" is "dense" seen from the other side, "added" has no x."""
    if role == "transposed":
        return dense(grad_y, x)
    if role in ("scaled", "added"):
        return Told("elementwise", x if role == "scaled" else None, grad_y)
    return Told(role, x, grad_y)


def together(name: str, uses: Sequence[Told], shape: torch.Size) -> Told:
    """The use whose gradient is the sum of those of several uses: their tokens, one after the other.

    A matrix that is both looked up and multiplied by, as tied embeddings are, is multiplied by one-hot rows.

    Args:
        name: The parameter's, for messages.
        uses: At least one.
        shape: The parameter's shape.

    Raises:
        ArgumentError: If the uses are of kinds that do not add up.
    """
    roles = {use.role for use in uses}
    if roles == {"dense", "looked up"}:
        uses = [_one_hot(use, shape[0]) if use.role == "looked up" else use for use in uses]
    elif len(roles) > 1 or len({use.x is None for use in uses}) > 1:
        raise ArgumentError(f"{name}: it is used in different ways in a pass, {', '.join(sorted(roles))}; leave it out")
    first = uses[0]
    kept = len(shape) if first.role == "elementwise" else 1
    xs = [_tokens(use.x, 0 if use.role == "looked up" else kept) for use in uses if use.x is not None]
    grads = [_tokens(use.grad_y, kept) for use in uses]
    return Told(uses[0].role, torch.cat(xs, dim=1) if xs else None, torch.cat(grads, dim=1))


def _one_hot(use: Told, rows: int) -> Told:
    return dense(use.grad_y, F.one_hot(use.x.long(), rows).to(use.grad_y.dtype))


def _tokens(x: Tensor, kept: int) -> Tensor:
    """[B, ..., *last] as [B, S, *last], the last `kept` dimensions staying."""
    return x.reshape(x.shape[0], -1, *x.shape[x.dim() - kept :])
