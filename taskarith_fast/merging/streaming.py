"""What a merge method tells the streaming engine: how its tensors may be cut, and which passes it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from taskarith_fast.merging.pieces import Piece
from taskarith_fast.merging.statistics import Statistics

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan

Shape = tuple[int, ...]
Parameters = Mapping[str, Any]
# read(pieces, label) yields each piece with the base's and every fine-tuned model's tensor, then every task's
# statistics of it if there are some.
Read = Callable[[Iterable[Piece], str], Iterator[tuple[Piece, list[Tensor]]]]


class Passes(Protocol):
    """A method at work on one job."""

    def survey(self, read: Read) -> None:
        """Read whatever the method has to know of all tensors before it merges the first."""

    def merge(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        """Merge one piece of what `read` yields; pieces come in the order of the plan."""

    def revise(self) -> list[Piece]:
        """The pieces to be merged once more, now that all have been seen."""


@dataclass(frozen=True)
class Streaming:
    """How a method streams.

    cut: "element", "row" or "tensor", or a function of (name, shape, parameters) that says which for a tensor.
    passes: How often all tensors are read, from the parameters.
    histograms: Whether each task needs counters for a global threshold, from the parameters.
    start: Makes the passes; by default the method's function is called on each piece.
    statistics: What is read beside the models.
    heavy: Whether arithmetic, and not reading, takes the time: then it runs on all threads.
    copies: Whether a piece of every model is changed before it is merged.
    """

    cut: str | Callable[[str, Shape, Parameters], str] = "tensor"
    passes: Callable[[Parameters], int] = lambda _: 1
    histograms: Callable[[Parameters], bool] = lambda _: False
    start: Callable[[Plan], Passes] | None = None
    statistics: Statistics | None = None
    heavy: bool = False
    copies: bool = False

    def cut_of(self, name: str, shape: Shape, parameters: Parameters) -> str:
        """The finest cut that the method allows for one tensor."""
        return self.cut if isinstance(self.cut, str) else self.cut(name, shape, parameters)


ELEMENTWISE = Streaming("element")


class FunctionPasses:
    """A pure function, called on each piece as if it were a model of one tensor."""

    def __init__(self, function: Callable[..., dict[str, Tensor]], plan: Plan) -> None:
        self._function, self._plan, self._parameters = function, plan, plan.parameters

    def survey(self, read: Read) -> None:
        pass

    def merge(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        base, *models = ({piece.name: tensor} for tensor in tensors[: 1 + self._plan.tasks])
        statistics = self._statistics(piece.name, tensors[1 + self._plan.tasks :])
        return self._function(base, models, **self._parameters, **statistics)[piece.name]

    def revise(self) -> list[Piece]:
        return []

    def _statistics(self, name: str, tensors: Sequence[Tensor]) -> dict[str, list[dict[str, Tensor]]]:
        """The argument that brings them: one mapping a task, empty if no task has any of this tensor."""
        if not self._plan.statistics:
            return {}
        tasks = [{name: tensor} for tensor in tensors] or [{} for _ in range(self._plan.tasks)]
        return {self._plan.statistics_name: tasks}
