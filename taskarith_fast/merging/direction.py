"""A merge as a line: an origin, and a direction that a scale multiplies.

    merged(scale) = origin + scale direction

Trims, votes and decompositions are in the direction. Once it is made, each scale costs one addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from taskarith_fast.merging.common import State


@dataclass(frozen=True, eq=False)
class Step:
    """The line of one tensor, or of some of its rows."""

    name: str
    rows: slice | EllipsisType
    origin: Tensor
    """Float32, the shape of these rows."""
    delta: Tensor
    """The direction, float32, same shape."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A merge at every scale."""

    start: State
    """The merge at scale 0: it gives names, shapes and dtypes, and the tensors that no step moves."""
    steps: Sequence[Step]

    def write(self, scale: float, out: State) -> None:
        """Put the merge at `scale` into the tensors of `out`, rounded to the dtype of `start`.

        Every entry is ``origin + scale delta`` in float32: two roundings away from exact arithmetic on the stored
        direction.

        Args:
            scale: Any finite number.
            out: Tensors with the names and shapes of `start`, of any floating dtype at least as wide.
        """
        moved = {step.name for step in self.steps}
        with torch.no_grad():
            for name, tensor in self.start.items():
                if name not in moved:
                    out[name].copy_(tensor)
            for step in self.steps:
                target, dtype = out[step.name][step.rows], self.start[step.name].dtype
                if target.dtype == dtype == torch.float32:
                    torch.add(step.origin, step.delta, alpha=scale, out=target)
                else:
                    target.copy_(torch.add(step.origin, step.delta, alpha=scale).to(dtype))

    def at(self, scale: float) -> dict[str, Tensor]:
        """The merge at `scale` as a new state."""
        out = {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in self.start.items()}
        self.write(scale, out)
        return out
