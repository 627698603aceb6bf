"""DARE in passes over pieces: what is dropped follows from seed, task, name and index, so each pass drops it anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskarith_fast.merging.common import check_compatible, per_task
from taskarith_fast.merging.dare import drop_factor
from taskarith_fast.merging.pieces import Piece
from taskarith_fast.merging.streaming import Parameters, Read, Streaming
from taskarith_fast.merging.ties_stream import TiesPasses, ties_counts, ties_cut, ties_passes
from taskarith_fast.ops import dare as dare_op
from taskarith_fast.ops.dare import stream

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan


class DarePasses:
    """Task arithmetic on dropped task vectors, one pass."""

    def __init__(self, plan: Plan) -> None:
        rules = plan.parameters
        factor = drop_factor(rules["density"], rules["rescale"], rules["seed"])
        self._weights = [scale * factor for scale in per_task("scale", rules["scale"], plan.tasks)]
        self._density, self._seed = rules["density"], rules["seed"]

    def survey(self, read: Read) -> None:
        pass

    def merge(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        _check(piece, tensors)
        base, *models = tensors
        keys = [[stream(self._seed, t, piece.name)] for t in range(len(models))]
        lists = [[model] for model in models]
        return dare_op([base], lists, self._weights, keys, density=self._density, begins=[piece.begin])[0]

    def revise(self) -> list[Piece]:
        return []


class DareTiesPasses(TiesPasses):
    """TIES of models that are dropped and rescaled piece by piece, in every pass the same."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, ties_rules(plan.parameters))
        rules = plan.parameters
        self._factor = drop_factor(rules["density"], rules["rescale"], rules["seed"])
        self._drop_density, self._seed = rules["density"], rules["seed"]

    def survey(self, read: Read) -> None:
        super().survey(lambda pieces, label: self._dropping(read(pieces, label)))

    def merge(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        return super().merge(piece, self._dropped(piece, tensors))

    def _dropping(self, found: Iterable[tuple[Piece, list[Tensor]]]) -> Iterator[tuple[Piece, list[Tensor]]]:
        for piece, tensors in found:
            yield piece, self._dropped(piece, tensors)

    def _dropped(self, piece: Piece, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not self._checked:
            _check(piece, tensors)
        base, *models = ([tensor] for tensor in tensors)
        return base + self._drop(base, models, [piece.name], [piece.begin], 0)

    def _sample(self, lines: Sequence[tuple[str, int]]) -> list[Tensor]:
        base, *models = (list(tensor) for tensor in super()._sample(lines))
        names, begins = [name for name, _ in lines], [begin for _, begin in lines]
        return [torch.stack(base)] + [
            torch.stack(self._drop(base, [model], names, begins, t)) for t, model in enumerate(models)
        ]

    def _drop(
        self, base: list[Tensor], models: Sequence[list[Tensor]], names: Sequence[str], begins: Sequence[int], task: int
    ) -> list[Tensor]:
        """The models of the tasks from `task` on, without what is dropped: all of the first, then of the next."""
        dropped = []
        for t, model in enumerate(models, task):
            keys = [[stream(self._seed, t, name) for name in names]]
            dropped += dare_op(base, [model], [self._factor], keys, density=self._drop_density, begins=begins)
        return dropped


def ties_rules(parameters: Parameters) -> dict[str, Any]:
    """The parameters that TIES goes by."""
    return {**parameters, "density": parameters["ties_density"]}


DARE_STREAMING = Streaming("element", start=DarePasses)
DARE_TIES_STREAMING = Streaming(
    ties_cut,
    lambda parameters: ties_passes(ties_rules(parameters)),
    lambda parameters: ties_counts(ties_rules(parameters)),
    DareTiesPasses,
    copies=True,
)


def _check(piece: Piece, tensors: Sequence[Tensor]) -> None:
    base, *models = ({piece.name: tensor} for tensor in tensors)
    check_compatible(base, models)
