"""The answers of edited models on tasks' images, for analyses that ask at many scales; see `analysis.edits`.

`EncoderEdits` writes the weights of each point into one encoder, by one weighted sum of the (base, fine-tuned) pairs of
those tensors that move. `LinearizedEdits` makes one pass a task, and every point is then a small product.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.data.task import at_size
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.evaluate import BATCH_SIZE, batches_of, evaluating, load_state
from taskarith_fast.loops.runtime import autocast, device_of
from taskarith_fast.loops.stem import Stem
from taskarith_fast.merging.coefficients import DeltaMerge
from taskarith_fast.sparse_task_vector import SparseTaskVector
from taskarith_fast.tangent import TangentFeatures
from taskarith_fast.task_vector import TaskVector

State = Mapping[str, Tensor]

KEPT_BYTES = 1 << 30
"""Most bytes of images kept in memory, and as many of activations."""


class Answers:
    """Tasks, heads and images, which both kinds of edits share.

    Args:
        encoder: Maps images [B, 3, S, S] to features [B, D].
        vectors: T fine-tuned states or task vectors.
        splits: Task name -> images and labels.
        heads: Task name -> head, features to logits.
        batch_size, image_size, precision: As for `evaluate`.

    Raises:
        ArgumentError: If there is no task vector, or a task lacks its head.
    """

    def __init__(
        self,
        encoder: nn.Module,
        vectors: Sequence[State],
        splits: Mapping[str, data.Split],
        heads: Mapping[str, nn.Module],
        *,
        batch_size: int = BATCH_SIZE,
        image_size: int | None = None,
        precision: str = "float32",
    ) -> None:
        if isinstance(vectors, Mapping) or not vectors:
            raise ArgumentError("vectors must be a list of at least one fine-tuned state or task vector")
        for name in splits:
            if name not in heads:
                raise ArgumentError(f"heads must have every task of splits, but lacks {name!r}")
        self.encoder = encoder
        self.tasks, self.vectors = tuple(splits), len(vectors)
        self._heads, self._splits = dict(heads), dict(splits)
        self._batch_size, self._precision = batch_size, precision
        self._size: int = image_size or encoder.image_size  # type: ignore[assignment]
        self._images: dict[str, data.Split] = {}
        self._left = KEPT_BYTES

    def features(self, point: Sequence[float], task: str) -> Tensor:
        """The encoder's features of one task's images, float32 [N, D], on the encoder's device."""
        raise NotImplementedError

    def logits(self, point: Sequence[float], task: str) -> Tensor:
        """What the task's head makes of the features at a point, shape [N, C]."""
        features, head = self.features(point, task), self._heads[task]
        with evaluating(head), autocast(features.device, self._precision):
            return head(features)

    def labels(self, task: str) -> Tensor:
        """The labels of one task's images, int64 [N], on the encoder's device."""
        split = self._held(task)
        labels = split.labels if isinstance(split, _HeldSplit) else split.get(range(len(split)))[1]
        return labels.to(device_of(self.encoder))

    def _scales(self, point: Sequence[float]) -> tuple[float, ...]:
        scales = tuple(float(scale) for scale in point)
        if len(scales) != self.vectors:
            raise ArgumentError(f"point must have one scale for each of {self.vectors} task vectors, got {len(scales)}")
        return scales

    def _batches(self, task: str) -> Iterator[tuple[Tensor, Tensor]]:
        options: dict[str, Any] = {"batch_size": self._batch_size, "image_size": self._size}
        return batches_of(self.encoder, self._held(task), device=device_of(self.encoder), **options)

    def _held(self, task: str) -> data.Split:
        """The images, which every point needs, resized and in memory where they fit."""
        if task not in self._images:
            split = at_size(self._splits[task], self._size)
            bytes_ = 3 * self._size**2 * len(split)
            fits = bytes_ <= self._left
            self._left -= bytes_ if fits else 0
            self._images[task] = _HeldSplit(*split.get(range(len(split)))) if fits else split
        return self._images[task]


class WrittenEdits(Answers):
    """Edits whose weights are written into one encoder, a point after the other, and its answers by forward passes.

    `stem` keeps what the encoder's first blocks give, if the points leave them alone.
    """

    stem: Stem | None = None
    _at: tuple[float, ...] | None = None

    def features(self, point: Sequence[float], task: str) -> Tensor:
        """The encoder's features of one task's images, float32 [N, D], on the encoder's device."""
        scales = self._scales(point)
        if scales != self._at:
            self._at = None  # in case that writing fails half-way
            self.write(scales)
            self._at = scales
        out = []
        with evaluating(self.encoder), autocast(device_of(self.encoder), self._precision):
            for i, (images, _) in enumerate(self._batches(task)):
                forward = functools.partial(self.encoder, images)
                out.append((forward() if self.stem is None else self.stem.run((task, i), forward)).float())
        return torch.cat(out)

    def write(self, scales: tuple[float, ...]) -> None:
        """Put the weights of a point, T scales, into the encoder."""
        raise NotImplementedError


class EncoderEdits(WrittenEdits):
    """An encoder at any point theta_0 + sum_t s_t tau_t; each point is a forward pass over a task's images.

    The weights are written in place by one weighted sum, and not again for the next question at the same point. The
    first blocks that no task vector reaches are run once, see `Stem`.

    Args:
        encoder: As for `evaluate`. It is worked on in place: hand in a copy if that matters.
        base: The pre-trained state theta_0, with the encoder's names.
        vectors: T fine-tuned states, task vectors, or sparse task vectors.
        splits, heads, options: As `Answers` has them.

    Raises:
        ArgumentError: As `Answers`.
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
        load_state(encoder, base)
        self._own = encoder.state_dict(keep_vars=True)
        place = {name: {"device": self._own[name].device, "dtype": self._own[name].dtype} for name in names}
        origin = {name: base[name].detach().to(**place[name], copy=True) for name in names}
        finetuned = [{n: m[n].detach().to(**place[n]) if n in m else origin[n] for n in names} for m in moved]
        self._merge = DeltaMerge(origin, finetuned)
        self.stem = Stem(encoder, names, KEPT_BYTES)

    def write(self, scales: tuple[float, ...]) -> None:
        """Put theta_0 + sum_t s_t tau_t into the encoder."""
        table = torch.tensor(scales, dtype=torch.float64)[:, None].expand(-1, len(self._merge.names))
        self._merge.write(table, self._own)


class LinearizedEdits(Answers):
    """The encoder linearized at theta_0: f(x; theta_0) + sum_t s_t J tau_t, for any point from one pass over a task.

    Args:
        encoder: An encoder that `linearize` takes, at any weights; it is not changed.
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
        super().__init__(copy.deepcopy(encoder), vectors, splits, heads, **options)
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


class _HeldSplit:
    """Images in memory, at the encoder's size."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, indices: Any) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[index], self.labels[index]


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
