"""Statistics of the tasks' data that a merge reads beside the models: one mapping, or one file, a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taskarith_fast.checkpoint.header import Entry
from taskarith_fast.checkpoint.sources import DTYPE_NAMES
from taskarith_fast.errors import ArgumentError, CheckpointError

_FLOATS = ("F64", "F32", "BF16", "F16")

Shape = tuple[int, ...]
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Statistics:
    """What a method has to know of each task besides its model.

    parameter: The argument that brings it: T mappings name -> tensor, or T paths where files are merged.
    origin: What makes it, for hints.
    shape: The shape that goes with a tensor's shape; None if such a tensor has no statistics.
    whole: Whether a tensor that has some must be merged in one piece.
    required: Whether every tensor must have some, from the method's parameters.
    passes: How often they are read, from the parameters.
    """

    parameter: str
    origin: str
    shape: Callable[[Shape], Shape | None]
    whole: bool = False
    required: Callable[[Parameters], bool] = lambda _: False
    passes: Callable[[Parameters], int] = lambda _: 1

    def check_count(self, given: Any, tasks: int) -> None:
        """Refuse anything but a list of one a task; ArgumentError."""
        listed = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
        if not listed or len(given) != tasks:
            got = len(given) if listed else type(given).__name__
            raise ArgumentError(
                f"{self.parameter} must be a list of {tasks} (one a task), got {got}; made by {self.origin}"
            )

    def check(
        self, tensors: Mapping[str, Tensor], given: Sequence[Mapping[str, Tensor]], tasks: int, parameters: Parameters
    ) -> list[str]:
        """Check statistics in memory and say which tensors have some.

        Args:
            tensors: The tensors to be merged.
            given: T mappings name -> tensor.
            tasks: T.
            parameters: The method's.

        Returns:
            Names, sorted.

        Raises:
            ArgumentError: If there is not one mapping a task.
            CheckpointError: If names, shapes or dtypes do not fit the models.
        """
        self.check_count(given, tasks)
        for t, one in enumerate(given):
            if not isinstance(one, Mapping):
                raise ArgumentError(
                    f"{self.parameter}[{t}] must map names to tensors, got {type(one).__name__}; "
                    f"open a file by ta.load_state_dict"
                )
        entries = [{n: Entry(DTYPE_NAMES.get(x.dtype, "?"), tuple(x.shape)) for n, x in one.items()} for one in given]
        found = self.misfits({n: tuple(x.shape) for n, x in tensors.items()}, entries, parameters)
        if found:
            raise found[0]
        return sorted(set().union(*given))

    def misfits(
        self, shapes: Mapping[str, Shape], given: Sequence[Mapping[str, Entry]], parameters: Parameters
    ) -> list[CheckpointError]:
        """Every way in which statistics do not fit the models.

        Args:
            shapes: The tensors to be merged, name -> shape.
            given: T mappings name -> dtype and shape.
            parameters: The method's.
        """
        known = {name for one in given for name in one} & shapes.keys()
        labels = [f"{self.parameter}[{t}]" for t in range(len(given))]
        found = []
        for label, one in zip(labels, given, strict=True):
            found += _listed(f"{label} has, unlike the models,", one.keys() - shapes.keys())
            for name in sorted(one.keys() & known):
                found += self._entry_misfits(name, shapes[name], one[name], label)
        for label, one in zip(labels, given, strict=True):
            found += _listed(f"{label} lacks, unlike another task's,", known - one.keys())
        if self.required(parameters):
            hint = "; pass missing='average' to average what has none"
            found += _listed(f"{self.parameter} lack", shapes.keys() - known, hint)
        return [CheckpointError(text) for text in found]

    def _entry_misfits(self, name: str, shape: Shape, entry: Entry, label: str) -> list[str]:
        expected = self.shape(shape)
        if expected is None:
            return [f"{name}: a tensor of shape {list(shape)} goes without {self.parameter}, got some in {label}"]
        if entry.shape != expected:
            return [f"{name}: shape in {label} must be {list(expected)}, got {list(entry.shape)}"]
        if entry.dtype not in _FLOATS:
            return [f"{name}: {label} must hold floating-point values, got {entry.dtype}"]
        return []


def _listed(text: str, names: Iterable[str], hint: str = "") -> list[str]:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{text} {', '.join(names[:3])}{more}{hint}"] if names else []
