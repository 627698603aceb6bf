"""The answers of edited models on tasks' images, for analyses that ask at many scales; see `analysis.edits`.

`EncoderEdits` writes the weights of each point into one encoder, by one weighted sum of the (base, fine-tuned) pairs of
those tensors that move. `LinearizedEdits` makes one pass a task, and every point is then a small product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.errors import CheckpointError
from taskarith_fast.loops.answers import KEPT_BYTES, Answers, State, WrittenEdits
from taskarith_fast.loops.evaluate import load_state
from taskarith_fast.loops.runtime import autocast, device_of
from taskarith_fast.loops.stem import Stem
from taskarith_fast.merging.coefficients import DeltaMerge
from taskarith_fast.sparse_task_vector import SparseTaskVector
from taskarith_fast.tangent import TangentFeatures
from taskarith_fast.task_vector import TaskVector


class EncoderEdits(WrittenEdits):
    """An encoder at any point theta_0 + sum_t s_t tau_t; each point is a forward pass over a task's images.

    The weights are written in place by one weighted sum, and not again for the next question at the same point. The
    first blocks that no task vector reaches are run once, see `Stem`.

    Args:
        encoder: As for `evaluate`. It is copied and not changed.
        base: The pre-trained state theta_0, with the encoder's names.
        vectors: T fine-tuned states, task vectors, or sparse task vectors.
        splits, heads: Task name -> images and labels, head.
        options: ``batch_size``, ``image_size`` and ``precision`` as for `evaluate`.

    Raises:
        ArgumentError: If there is no task vector, or a task lacks its head.
        CheckpointError: If a state or a delta does not fit `base`, or `base` does not fit the encoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        base: State,
        vectors: Sequence[State],
        splits: Mapping[str, data.Split],
        heads: Mapping[str, nn.Module],
        **options: Any,
    ) -> None:
        super().__init__(encoder, vectors, splits, heads, **options)
        moved = [_moved(base, vector, f"vectors[{t}]") for t, vector in enumerate(vectors)]
        names = [name for name in base if any(name in tensors for tensors in moved)]
        load_state(self.encoder, base)
        self._own = self.encoder.state_dict(keep_vars=True)
        place = {name: {"device": self._own[name].device, "dtype": self._own[name].dtype} for name in names}
        origin = {name: base[name].detach().to(**place[name], copy=True) for name in names}
        finetuned = [{n: m[n].detach().to(**place[n]) if n in m else origin[n] for n in names} for m in moved]
        self._merge = DeltaMerge(origin, finetuned)
        self.stem = Stem(self.encoder, names, KEPT_BYTES)

    def write(self, scales: tuple[float, ...]) -> None:
        """Put theta_0 + sum_t s_t tau_t into the encoder."""
        table = torch.tensor(scales, dtype=torch.float64)[:, None].expand(-1, len(self._merge.names))
        self._merge.write(table, self._own)


class LinearizedEdits(Answers):
    """The encoder linearized at theta_0: f(x; theta_0) + sum_t s_t J tau_t, for any point from one pass over a task.

    Args:
        encoder: An encoder that `linearize` takes, at any weights.
        base, vectors, splits, heads, options: As for `EncoderEdits`.

    Raises:
        ArgumentError, CheckpointError: As `EncoderEdits`.
        NoRuleError: If the encoder does something that has no rule for tangents.
    """

    def __init__(
        self,
        encoder: nn.Module,
        base: State,
        vectors: Sequence[State],
        splits: Mapping[str, data.Split],
        heads: Mapping[str, nn.Module],
        **options: Any,
    ) -> None:
        super().__init__(encoder, vectors, splits, heads, **options)
        load_state(self.encoder, base)
        self._deltas = [_deltas(base, vector, f"vectors[{t}]") for t, vector in enumerate(vectors)]
        self._tangents: dict[str, TangentFeatures] = {}

    def features(self, point: Sequence[float], task: str) -> Tensor:
        """The linearized encoder's features of one task's images, float32 [N, D], on the encoder's device."""
        scales = self._scales(point)
        if task not in self._tangents:
            images = (images for images, _ in self._batches(task))
            with autocast(device_of(self.encoder), self._precision):
                self._tangents[task] = TangentFeatures(self.encoder, images, self._deltas)
        return self._tangents[task].at(scales).float()


def _moved(base: State, vector: State, label: str) -> dict[str, Tensor]:
    """Name -> fine-tuned tensor, of those tensors alone that differ from the base."""
    if isinstance(vector, (TaskVector, SparseTaskVector)):
        return {name: base[name] + delta for name, delta in _deltas(base, vector, label).items()}
    _check(base, vector, label, all_of_them=True)
    return {name: vector[name] for name in base if not torch.equal(base[name], vector[name])}


def _deltas(base: State, vector: State, label: str) -> dict[str, Tensor]:
    """Name -> delta, of those tensors alone that move."""
    if not isinstance(vector, (TaskVector, SparseTaskVector)):
        return {name: tensor - base[name] for name, tensor in _moved(base, vector, label).items()}
    _check(base, vector, label, all_of_them=False)
    return {name: delta for name in vector if bool((delta := vector[name]).any())}


def _check(base: State, vector: State, label: str, *, all_of_them: bool) -> None:
    for name in sorted(base.keys() ^ vector.keys()):
        if all_of_them or name in vector:
            side = "lacks the tensor, which base has" if name in base else "has the tensor, which base lacks"
            raise CheckpointError(f"{label}: {side}: {name}")
    for name in vector:
        if base[name].shape != vector[name].shape:
            raise CheckpointError(
                f"{label}: {name} must have shape {list(base[name].shape)} as base, got {list(vector[name].shape)}"
            )
        if not base[name].is_floating_point() and not torch.equal(base[name], vector[name]):
            raise CheckpointError(f"{label}: {name} is no floating tensor and must equal base's, but differs")
