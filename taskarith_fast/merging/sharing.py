"""Work that merges share: the direction of a method that is linear in its scale.

Every method of the table with a parameter `scale` gives base + scale m, with m independent of the scale (CART: the
average in place of the base). m is read off one merge at a scale so large that the base is below its rounding: with
S = 2^24, (merged(S) - base) / S is m within one rounding, plus 2^-48 of the base. No kernel needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging.arithmetic import average
from taskarith_fast.merging.common import State
from taskarith_fast.merging.direction import Direction, Step
from taskarith_fast.merging.methods import find_method, merge
from taskarith_fast.ops import count_nonfinite

_FAR = 2.0**24


def split_scale(method: str, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], float] | None:
    """The parameters that a direction depends on, and the scale; None if the merge is no such line.

    Args:
        method: A name from ``merge_methods()``.
        parameters: All parameters, defaults included.
    """
    scale = parameters.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):  # no such parameter, or one number a task
        return None
    return {name: value for name, value in parameters.items() if name != "scale"}, float(scale)


def direction_of(base: State, finetuned: Sequence[State], method: str, **parameters: Any) -> Direction:
    """Merge once for all scales.

    Args:
        base: The pre-trained model.
        finetuned: T fine-tuned models.
        method: A method that has a parameter `scale`.
        **parameters: Its other parameters.

    Raises:
        ArgumentError: As ``merge``, and if a floating tensor of the base is not float32: its steps between two scales
            would be too coarse to read a direction off.
        CheckpointError: As ``merge``, and if the direction is too large for float32.
    """
    find_method(method, {**parameters, "scale": 1.0})
    narrow = [name for name, t in base.items() if t.is_floating_point() and t.dtype != torch.float32]
    if narrow:
        raise ArgumentError(f"base must be float32 for a direction, got {base[narrow[0]].dtype} in {narrow[0]}")
    far = merge(base, finetuned, method, scale=_FAR, **parameters)
    origin = average(base, finetuned) if method == "cart" else base
    names = [name for name in base if base[name].is_floating_point()]
    deltas = [far[name].sub_(origin[name].detach()).mul_(1 / _FAR) for name in names]
    if int(count_nonfinite(deltas).sum()):
        raise CheckpointError(f"finetuned: the {method} merge must stay below 1e31 to be shared by scales, got larger")
    return Direction(origin, [Step(n, ..., origin[n].detach(), d) for n, d in zip(names, deltas, strict=True)])
