"""TIES in passes over pieces, with the bytes of TIES on whole models.

A global threshold takes one pass that counts magnitudes, bracketed by a small sample; a bracket that misses, or is
too wide for its counters, costs another pass, never a digit. Ties at the threshold are kept up to the k-th by
carrying how many are left from piece to piece. Pieces whose zero votes mattered are merged again if the majority of
all signs turns out not to be positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskarith_fast.merging.common import check_compatible
from taskarith_fast.merging.pieces import Piece
from taskarith_fast.merging.streaming import Parameters, Read, Shape, Streaming
from taskarith_fast.merging.ties import EVERY_TIE, kept_entries, trim
from taskarith_fast.merging.ties_threshold import Threshold, find_thresholds, read_lines
from taskarith_fast.ops import tie_cutoffs, ties_merge_part, ties_square_sums

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan

_NORM_RULES = ("normfrac", "normmass")


def ties_cut(name: str, shape: Shape, parameters: Parameters) -> str:
    """Runs of entries for a global threshold, else where a threshold holds; whole tensors where norms add up rows."""
    if parameters["scope"] == "global":
        return "element"
    return "row" if parameters["scope"] == "row" and parameters["elect"] not in _NORM_RULES else "tensor"


def ties_passes(parameters: Parameters) -> int:
    """Reads of all tensors, if the sample brackets every threshold."""
    return 1 + ties_counts(parameters) + (parameters["elect"] in _NORM_RULES)


def ties_counts(parameters: Parameters) -> bool:
    """Whether thresholds are found by counting: not if everything is kept, or a piece has its own thresholds."""
    return parameters["scope"] == "global" and parameters["density"] < 1


class TiesPasses:
    """TIES at work on one plan, by `rules`, the plan's parameters unless others are given."""

    def __init__(self, plan: Plan, rules: Parameters | None = None) -> None:
        self._plan, self._rules = plan, plan.parameters if rules is None else rules
        self._numel = sum(piece.numel for piece in plan.pieces)
        self._thresholds: list[Threshold] = [Threshold(0, self._numel, None)] * plan.tasks
        self._left: list[int | None] = []
        self._shares = torch.zeros(plan.tasks, dtype=torch.float64)
        self._checked = False
        self._signs = 0
        self._unsettled: dict[Piece, tuple[Tensor, Tensor]] = {}
        self._undecided = 0.0 if self._rules["zero_sign"] == "zero" else 1.0

    def survey(self, read: Read) -> None:
        if ties_counts(self._rules):
            rank, cutoff = kept_entries(self._rules["count_rule"], self._rules["density"], self._numel)
            self._thresholds = find_thresholds(
                self._plan, rank, lambda label: self._read_checked(read, label), self._sample
            )
            if self._rules["count_rule"] != "exact":
                self._thresholds = [Threshold(x.bits, rank, cutoff) for x in self._thresholds]
            self._checked = True
        if self._rules["elect"] in _NORM_RULES:
            self._add_squares(read)
        self._start_ties()

    def merge(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        if not self._checked:
            _check(piece, tensors)
        again = self._unsettled.get(piece)
        thresholds, cutoffs = again or self._trim(tensors)
        base, *models = tensors
        merged, signs, mattered = ties_merge_part(
            [base], [[m] for m in models], thresholds, cutoffs, self._shares.to(base.device), undecided=self._undecided,
            **{k: self._rules[k] for k in ("scale", "elect", "combine", "scope")},
        )  # fmt: skip
        if again is None:
            self._signs += signs
            if mattered and self._rules["zero_sign"] == "global_majority":
                self._unsettled[piece] = thresholds, cutoffs
        return merged[0]

    def revise(self) -> list[Piece]:
        if self._signs > 0 or not self._unsettled:
            return []
        # With no majority either, the published code takes the negative deltas, and nothing for "max".
        self._undecided = -1.0 if self._signs < 0 or self._rules["combine"] != "max" else 0.0
        return list(self._unsettled)

    def _sample(self, lines: Sequence[tuple[str, int]]) -> list[Tensor]:
        """Lines of the base and of every task's model, as float32."""
        return [read_lines(source, lines) for source in self._plan.sources]

    def _read_checked(self, read: Read, label: str) -> Any:
        for piece, tensors in read(self._plan.pieces, label):
            if not self._checked:
                _check(piece, tensors)
            yield piece, tensors

    def _add_squares(self, read: Read) -> None:
        sums = torch.zeros(self._plan.tasks, dtype=torch.float64)
        self._start_ties()
        for _, tensors in self._read_checked(read, "norms"):
            base, *models = tensors
            table = self._trim(tensors)
            sums = sums.to(base.device)
            sums = ties_square_sums([base], [[m] for m in models], *table, sums, scope=self._rules["scope"])
        self._checked = True
        self._shares = torch.where(sums > 0, 1 / sums, 0.0)

    def _start_ties(self) -> None:
        """How many ties are left to be kept, for the tasks that drop some."""
        self._left = [x.ties for x in self._thresholds]

    def _trim(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Thresholds and cutoffs of a piece, [S, T] each."""
        base, *models = tensors
        if self._rules["scope"] != "global":
            rules = (self._rules["density"], self._rules["count_rule"], self._rules["scope"])
            return trim([base], [[m] for m in models], *rules)
        bits = torch.tensor([[x.bits for x in self._thresholds]], dtype=torch.int32)
        cutoffs = torch.tensor([self._cutoffs(base, models)], dtype=torch.int64)
        return bits.view(torch.float32).to(base.device), cutoffs.to(base.device)

    def _cutoffs(self, base: Tensor, models: Sequence[Tensor]) -> list[int]:
        """Where, in this piece, the ties of each task stop being kept; and keep the account."""
        cutoffs = [EVERY_TIE if x.cutoff is None else x.cutoff for x in self._thresholds]
        some = [t for t, left in enumerate(self._left) if left]
        values = [self._thresholds[t].bits for t in some]
        ends, left = tie_cutoffs(base, [models[t] for t in some], values, [self._left[t] or 0 for t in some])
        for t, n in enumerate(self._left):
            cutoffs[t] = 0 if n == 0 else cutoffs[t]
        for t, end, rest in zip(some, ends, left, strict=True):
            cutoffs[t], self._left[t] = end, rest
        return cutoffs


TIES_STREAMING = Streaming(ties_cut, ties_passes, ties_counts, TiesPasses)


def _check(piece: Piece, tensors: Sequence[Tensor]) -> None:
    base, *models = ({piece.name: tensor} for tensor in tensors)
    check_compatible(base, models)
