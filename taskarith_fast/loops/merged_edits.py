"""The answers of models that are no sum of task vectors: merged by any method, or any list of states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.answers import State, WrittenEdits
from taskarith_fast.loops.evaluate import load_state
from taskarith_fast.merging import merge
from taskarith_fast.merging.common import check_compatible
from taskarith_fast.merging.direction import Direction
from taskarith_fast.merging.methods import find_method
from taskarith_fast.merging.sharing import direction_of


class MergedEdits(WrittenEdits):
    """Models merged by a method: at the point (s, 0, s, 0, ...) the merge, at scale s, of the first and third model.

    The point of zeros is the base. A method without a scale has the points of zeros and ones. Votes and
    decompositions are made once for each set of models, not again for each scale (if the base is float32).

    Args:
        encoder: As for `EncoderEdits`.
        base: The pre-trained state.
        finetuned: T fine-tuned states.
        splits, heads: As for `EncoderEdits`.
        method: A name from ``merge_methods()``; its parameters but the scale are `parameters`.
        options: As for `EncoderEdits`.

    Raises:
        ArgumentError: If method or parameters are not known, or `parameters` has a scale; and as `EncoderEdits`.
        CheckpointError: As `EncoderEdits`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        base: State,
        finetuned: Sequence[State],
        splits: Mapping[str, data.Split],
        heads: Mapping[str, nn.Module],
        *,
        method: str,
        parameters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._method, self._parameters = method, dict(parameters or {})
        self._scaled = "scale" in find_method(method, self._parameters).parameters
        if "scale" in self._parameters:
            raise ArgumentError("parameters must not have the scale: it is a coordinate of each point")
        super().__init__(encoder, finetuned, splits, heads, **options)
        check_compatible(base, finetuned)
        self._base, self._finetuned = base, list(finetuned)
        self._kept: tuple[list[int], Direction] | None = None
        narrow = any(t.is_floating_point() and t.dtype != torch.float32 for t in base.values())
        self._shared = self._scaled and not narrow

    def write(self, scales: tuple[float, ...]) -> None:
        """Put the merge of those models whose scale is not 0 into the encoder."""
        members = [t for t, scale in enumerate(scales) if scale]
        if not members:
            load_state(self.encoder, self._base)
            return
        scale = scales[members[0]]
        if any(scales[t] != scale for t in members):
            raise ArgumentError(f"point must have one scale for all models that take part, got {list(scales)}")
        if not self._scaled and scale != 1:
            raise ArgumentError(f"point must be of zeros and ones: {self._method!r} has no scale; got {list(scales)}")
        if self._shared:
            load_state(self.encoder, self._direction(members).at(scale))
            return
        models = [self._finetuned[t] for t in members]
        scaled = {"scale": scale} if self._scaled else {}
        load_state(self.encoder, merge(self._base, models, self._method, **self._parameters, **scaled))

    def _direction(self, members: list[int]) -> Direction:
        """The merge of some models at every scale; that of the last members is kept."""
        if self._kept is None or self._kept[0] != members:
            models = [self._finetuned[t] for t in members]
            self._kept = members, direction_of(self._base, models, self._method, **self._parameters)
        return self._kept[1]


class StateEdits(WrittenEdits):
    """Any models, a number for each: the point with 1 at place i and 0 elsewhere is the i-th.

    Args:
        encoder: As for `EncoderEdits`.
        states: T states with the encoder's names; tensors are looked up when a state is asked for.
        splits, heads, options: As for `EncoderEdits`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        states: Sequence[State],
        splits: Mapping[str, data.Split],
        heads: Mapping[str, nn.Module],
        **options: Any,
    ) -> None:
        super().__init__(encoder, states, splits, heads, **options)
        self._states = list(states)

    def write(self, scales: tuple[float, ...]) -> None:
        """Load the chosen state into the encoder."""
        if sorted(scales) != [0.0] * (self.vectors - 1) + [1.0]:
            raise ArgumentError(f"point must be 1 for one state and 0 for all others, got {list(scales)}")
        load_state(self.encoder, self._states[scales.index(1.0)])
