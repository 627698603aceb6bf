"""What a merge method tells the streaming engine: how its tensors may be cut, and which passes it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from taskarith_fast.merging.pieces import Piece

if TYPE_CHECKING:
    from taskarith_fast.merging.plan import Plan

Shape = tuple[int, ...]
Parameters = Mapping[str, Any]
# read(pieces, label) yields each piece with the base's and every fine-tuned model's tensor.
Read = Callable[[Iterable[Piece], str], Iterator[tuple[Piece, list[Tensor]]]]


class Passes(Protocol):
    """A method at work on one job."""

    def survey(self, read: Read) -> None:
        """Read whatever the method has to know of all tensors before it merges the first."""

    def merge(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        """Merge one piece: the base's tensor first, then one a task; pieces come in the order of the plan."""

    def revise(self) -> list[Piece]:
        """The pieces to be merged once more, now that all have been seen."""


@dataclass(frozen=True)
class Streaming:
    """How a method streams.

    cut: "element", "row", "tensor" or "model", or a function of (name, shape, parameters) that says which for a tensor.
    passes: How often all tensors are read, from the parameters.
    histograms: Whether each task needs counters for a global threshold, from the parameters.
    start: Makes the passes; by default the method's function is called on each piece.
    heavy: Whether arithmetic, and not reading, takes the time: then it runs on all threads.
    """

    cut: str | Callable[[str, Shape, Parameters], str] = "model"
    passes: Callable[[Parameters], int] = lambda _: 1
    histograms: Callable[[Parameters], bool] = lambda _: False
    start: Callable[[Plan], Passes] | None = None
    heavy: bool = False

    def cut_of(self, name: str, shape: Shape, parameters: Parameters) -> str:
        """The finest cut that the method allows for one tensor."""
        return self.cut if isinstance(self.cut, str) else self.cut(name, shape, parameters)


ELEMENTWISE = Streaming("element")
BY_TENSOR = Streaming("tensor")
WHOLE_MODEL = Streaming("model")


class FunctionPasses:
    """A pure function, called on each piece as if it were a model of one tensor."""

    def __init__(self, function: Callable[..., dict[str, Tensor]], parameters: Parameters) -> None:
        self._function, self._parameters = function, parameters

    def survey(self, read: Read) -> None:
        pass

    def merge(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        base, *models = ({piece.name: tensor} for tensor in tensors)
        return self._function(base, models, **self._parameters)[piece.name]

    def revise(self) -> list[Piece]:
        return []
