"""Sparse task vectors: one bit a weight, and the deltas of those that moved."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from taskarith_fast.checkpoint import LazyState, load_state_dict, save_state_dict, with_kind
from taskarith_fast.errors import CheckpointError
from taskarith_fast.masks import Masks, read_shapes
from taskarith_fast.task_vector import TaskVector, deltas_between

_KIND, _SCHEMA = "sparse_task_vector", "1"
_RESERVED = ("taskarith", "schema", "shapes", "dtypes")


class SparseTaskVector(Mapping[str, Tensor]):
    """The deltas ``finetuned - base`` where they are not zero; a dense tensor where a name is looked up.

    Sums, multiples and negatives are formed from the stored values; no dense vector of the model exists. A tensor of
    n entries of which k moved takes ``n / 8`` bytes and k values, in memory and on disk; on disk, one that did not
    move at all, or moved everywhere, takes no mask.

    Args:
        masks: Where the entries are that may differ from zero.
        values: Name -> the deltas there, shape [masks.count(name)], in ascending order of their index.

    Attributes:
        metadata: Strings that a loaded file holds beside the deltas; empty otherwise.

    Raises:
        CheckpointError: If names differ, or a tensor has another number of values than its mask has entries.
    """

    def __init__(self, masks: Masks, values: Mapping[str, Tensor]) -> None:
        if masks.keys() != values.keys():
            name = sorted(masks.keys() ^ values.keys())[0]
            raise CheckpointError(f"{name} must be in both masks and values, got it in one only")
        self.masks = masks
        self.metadata: dict[str, str] = {}
        self._values = {name: values[name] for name in masks}
        for name, value in self._values.items():
            if value.shape != (masks.count(name),):
                raise CheckpointError(
                    f"{name}: values must have shape [{masks.count(name)}] as its mask says, got {list(value.shape)}"
                )

    @classmethod
    def between(cls, base: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]) -> SparseTaskVector:
        """The task vector that leads from `base` to `finetuned`, which holds the entries that differ.

        Raises:
            CheckpointError: If names, shapes or dtypes differ.
        """
        moved, values = [], {}
        for name, delta in deltas_between(base, finetuned):
            moved.append(Masks.pack({name: delta != 0}))
            values[name] = delta[delta != 0]
        return cls(Masks.join(moved), values)

    @property
    def nbytes(self) -> int:
        """Bytes of masks and values in memory."""
        bits = sum(self.masks.packed(name).numel() for name in self.masks)
        return bits + sum(value.numel() * value.element_size() for value in self._values.values())

    def values_of(self, name: str) -> Tensor:
        """The stored deltas of one tensor, shape [masks.count(name)]."""
        return self._values[name]

    def apply(self, base: Mapping[str, Tensor], *, scale: float = 1.0) -> dict[str, Tensor]:
        """``base + scale * self``: entries that did not move keep the bits of `base`; `base` is not changed.

        Raises:
            CheckpointError: If a delta has no tensor in `base`, or one of another shape.
        """
        out = {name: value.clone(memory_format=torch.contiguous_format) for name, value in base.items()}
        for name, value in self._values.items():
            shape = self.masks.shape(name)
            if name not in out or out[name].shape != shape:
                got = list(out[name].shape) if name in out else "no such tensor"
                raise CheckpointError(f"{name}: base must have shape {list(shape)}, got {got}")
            if value.numel():
                index = self.masks[name].reshape(-1).nonzero().reshape(-1)
                flat = out[name].view(-1)
                flat[index] = torch.add(flat[index], value, alpha=scale)
        return out

    def dense(self) -> TaskVector:
        """The same task vector with every entry in memory."""
        return TaskVector(dict(self))

    def norm(self) -> float:
        """Euclidean norm over all deltas, in float64."""
        return math.sqrt(sum(float(value.double().square().sum()) for value in self._values.values()))

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write masks and values, and strings beside them, to one safetensors file, atomically."""
        state = {}
        for name, value in self._values.items():
            if value.numel():
                state[f"value/{name}"] = value
            if 0 < value.numel() < math.prod(self.masks.shape(name)):
                state[f"mask/{name}"] = self.masks.packed(name).clone()  # two equal masks are not tied weights
        shapes = {name: self.masks.shape(name) for name in self}
        dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in self._values.items()}
        kind = {"taskarith": _KIND, "schema": _SCHEMA, "shapes": json.dumps(shapes), "dtypes": json.dumps(dtypes)}
        save_state_dict(state, path, metadata=with_kind(kind, metadata), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparseTaskVector:
        """Read what ``save`` wrote; a file of weights, or a damaged one, is refused."""
        state = load_state_dict(path)
        if not isinstance(state, LazyState) or state.metadata.get("taskarith") != _KIND:
            raise CheckpointError(f"{path}: expected a file written by SparseTaskVector.save, got another checkpoint")
        try:
            shapes = read_shapes(state.metadata.get("shapes", ""))
            dtypes = json.loads(state.metadata["dtypes"])
            whole = {name: Masks.full({name: shape}, f"value/{name}" in state) for name, shape in shapes.items()}
            parts = {n: Masks({n: state[f"mask/{n}"]}, {n: shapes[n]}) for n in shapes if f"mask/{n}" in state}
            empty = {name: torch.empty(0, dtype=getattr(torch, dtypes[name])) for name in shapes}
            values = {name: state[f"value/{name}"] if f"value/{name}" in state else empty[name] for name in shapes}
            vector = cls(Masks.join((whole | parts).values()), values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: a damaged sparse task vector ({error})") from None
        vector.metadata = {name: text for name, text in state.metadata.items() if name not in _RESERVED}
        return vector

    def __getitem__(self, name: str) -> Tensor:
        value = self._values[name]
        out = value.new_zeros(self.masks.shape(name))
        out[self.masks[name]] = value
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __neg__(self) -> SparseTaskVector:
        return self * -1.0

    def __mul__(self, factor: float) -> SparseTaskVector:
        return SparseTaskVector(self.masks, {name: value * factor for name, value in self._values.items()})

    __rmul__ = __mul__

    def __add__(self, other: SparseTaskVector) -> SparseTaskVector:
        return self._combine(other, 1.0)

    def __sub__(self, other: SparseTaskVector) -> SparseTaskVector:
        return self._combine(other, -1.0)

    def __radd__(self, other: object) -> SparseTaskVector:
        if other == 0:  # so that sum([...]) works
            return self
        return NotImplemented

    def _combine(self, other: SparseTaskVector, factor: float) -> SparseTaskVector:
        if not isinstance(other, SparseTaskVector):
            return NotImplemented
        masks = self.masks | other.masks
        values = {}
        for name in masks:
            either = masks[name]
            total = self._values[name].new_zeros(masks.count(name))
            total[self.masks[name][either]] = self._values[name]
            total[other.masks[name][either]] += factor * other._values[name]
            values[name] = total
        return SparseTaskVector(masks, values)
