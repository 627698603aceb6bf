"""Task vectors: what fine-tuning changed, as a value that can be added, scaled, negated, saved and applied."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from taskarith_fast.checkpoint import LazyState, load_state_dict, save_state_dict, with_kind
from taskarith_fast.errors import CheckpointError

_KIND = {"taskarith": "task_vector", "schema": "1"}


class TaskVector(Mapping[str, Tensor]):
    """The deltas ``finetuned - base`` of every floating tensor (Ilharco 2023, section 2).

    Args:
        deltas: Name -> delta, in the dtype of the models.

    Attributes:
        metadata: Strings that a loaded file holds beside the deltas; empty otherwise.
    """

    def __init__(self, deltas: Mapping[str, Tensor]) -> None:
        self._deltas = dict(deltas)
        self.metadata: dict[str, str] = {}

    @classmethod
    def between(cls, base: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]) -> TaskVector:
        """The task vector that leads from `base` to `finetuned`; integer tensors take no part.

        Raises:
            CheckpointError: If names, shapes or dtypes differ.
        """
        return cls(dict(deltas_between(base, finetuned)))

    def apply(self, base: Mapping[str, Tensor], *, scale: float = 1.0) -> dict[str, Tensor]:
        """``base + scale * self``; tensors without a delta are copied.

        Raises:
            CheckpointError: If a delta has no tensor in `base`, or one of another shape.
        """
        for name, delta in self._deltas.items():
            if name not in base or base[name].shape != delta.shape:
                got = list(base[name].shape) if name in base else "no such tensor"
                raise CheckpointError(f"{name}: base must have shape {list(delta.shape)}, got {got}")
        return {
            name: torch.add(value, self._deltas[name], alpha=scale) if name in self._deltas else value.clone()
            for name, value in base.items()
        }

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write the deltas, and strings beside them, to one safetensors file, atomically."""
        save_state_dict(self._deltas, path, metadata=with_kind(_KIND, metadata), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskVector:
        """Read what ``save`` wrote; a file of weights is refused."""
        state = load_state_dict(path)
        if not isinstance(state, LazyState) or state.metadata.get("taskarith") != "task_vector":
            raise CheckpointError(f"{path}: expected a task vector written by TaskVector.save, got another checkpoint")
        vector = cls(state)
        vector.metadata = {name: text for name, text in state.metadata.items() if name not in _KIND}
        return vector

    def norm(self) -> float:
        """Euclidean norm over all deltas, in float64."""
        return sum(float(d.double().square().sum()) for d in self._deltas.values()) ** 0.5

    def __getitem__(self, name: str) -> Tensor:
        return self._deltas[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._deltas)

    def __len__(self) -> int:
        return len(self._deltas)

    def __neg__(self) -> TaskVector:
        return TaskVector({name: -delta for name, delta in self.items()})

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector({name: delta * factor for name, delta in self.items()})

    __rmul__ = __mul__

    def __add__(self, other: TaskVector) -> TaskVector:
        return self._combine(other, 1.0)

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self._combine(other, -1.0)

    def __radd__(self, other: object) -> TaskVector:
        if other == 0:  # so that sum([...]) works
            return self
        return NotImplemented

    def _combine(self, other: TaskVector, factor: float) -> TaskVector:
        if self.keys() != other.keys():
            name = sorted(self.keys() ^ other.keys())[0]
            raise CheckpointError(f"{name} is in one task vector only; both must have the same tensors")
        return TaskVector({name: torch.add(delta, other[name], alpha=factor) for name, delta in self.items()})


def deltas_between(base: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name and ``finetuned - base`` of every floating tensor, one after the other.

    Raises:
        CheckpointError: If names, shapes or dtypes differ.
    """
    if base.keys() != finetuned.keys():
        name = sorted(base.keys() ^ finetuned.keys())[0]
        raise CheckpointError(f"{name} is in one model only; both must have the same tensors")
    for name in base:
        b, f = base[name], finetuned[name]
        if b.shape != f.shape or b.dtype != f.dtype:
            raise CheckpointError(
                f"{name}: finetuned must be {b.dtype} {list(b.shape)} as in base, got {f.dtype} {list(f.shape)}"
            )
        if b.is_floating_point():
            yield name, f - b
