"""A model's answers on the images of tasks, which are held in memory for the next question."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.data.task import at_size
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.evaluate import BATCH_SIZE, batches_of, evaluating
from taskarith_fast.loops.runtime import autocast, device_of
from taskarith_fast.loops.stem import Stem

State = Mapping[str, Tensor]

KEPT_BYTES = 1 << 30
"""Most bytes of images kept in memory, and as many of activations. Images beyond are read again for every answer."""


class Answers:
    """Tasks, heads and images, which all kinds of edits share.

    Args:
        encoder: Maps images [B, 3, S, S] to features [B, D]. It is copied and not changed.
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
        self.encoder = copy.deepcopy(encoder)
        self.tasks, self.vectors = tuple(splits), len(vectors)
        self._heads, self._splits = dict(heads), dict(splits)
        self._batch_size, self._precision = batch_size, precision
        self._size: int = image_size or encoder.image_size  # type: ignore[assignment]
        self._images: dict[str, data.Split] = {}
        self._labels: dict[str, Tensor] = {}
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
        if task not in self._labels:
            self._labels[task] = torch.cat([labels for _, labels in self._batches(task)])
        return self._labels[task]

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


class _HeldSplit:
    """Images in memory, at the encoder's size."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, indices: Any) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[index], self.labels[index]
