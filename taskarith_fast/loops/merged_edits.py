"""The answers of models merged by any method, seen as points: which task vectors take part, and at which scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.edits import EncoderEdits
from taskarith_fast.loops.evaluate import load_state
from taskarith_fast.merging import merge
from taskarith_fast.merging.cart import CartFactors
from taskarith_fast.merging.methods import find_method

State = Mapping[str, Tensor]


class MergedEdits(EncoderEdits):
    """Models merged by a method: at the point (s, 0, s, 0, ...) the merge, at scale s, of the first and third model.

    The point of zeros is the base. A method without a scale has the points of zeros and ones. The decompositions of
    "cart" are made once for each set of models.

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
        self._defaults = find_method(method, self._parameters).parameters
        self._scaled = "scale" in self._defaults
        if "scale" in self._parameters:
            raise ArgumentError("parameters must not have the scale: it is a coordinate of each point")
        super().__init__(encoder, base, [base] * len(finetuned), splits, heads, **options)
        self._base, self._finetuned = base, list(finetuned)
        self._factors: tuple[list[int], CartFactors] | None = None
        self._stem.blocks = []  # what a method does to tensors that no task moved is its own affair

    def _write(self, scales: tuple[float, ...]) -> None:
        members = [t for t, scale in enumerate(scales) if scale]
        if not members:
            load_state(self.encoder, self._base)
            return
        scale = scales[members[0]]
        if any(scales[t] != scale for t in members):
            raise ArgumentError(f"point must have one scale for all models that take part, got {list(scales)}")
        if not self._scaled and scale != 1:
            raise ArgumentError(f"point must be of zeros and ones: {self._method!r} has no scale; got {list(scales)}")
        load_state(self.encoder, self._merged(members, scale))

    def _merged(self, members: list[int], scale: float) -> State:
        models = [self._finetuned[t] for t in members]
        shared = {"rank_ratio", "split_qkv", "svd"}
        if self._method != "cart" or self._parameters.keys() - shared:
            scaled = {"scale": scale} if self._scaled else {}
            return merge(self._base, models, self._method, **self._parameters, **scaled)
        options = dict(self._parameters)
        ratio = options.pop("rank_ratio", self._defaults["rank_ratio"])
        if self._factors is None or self._factors[0] != members:
            self._factors = members, CartFactors(self._base, models, max_rank_ratio=ratio, **options)
        return self._factors[1].merge(rank_ratio=ratio, scale=scale)
