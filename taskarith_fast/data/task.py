"""What a task is: three splits of labelled images or texts, in memory or decoded from files when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from taskarith_fast.errors import DataError

SPLITS = ("train", "val", "test")


@runtime_checkable
class Split(Protocol):
    """Labelled images, or texts, in a fixed order."""

    def __len__(self) -> int: ...

    def get(self, indices: Sequence[int] | Tensor) -> tuple[Any, Tensor]:
        """Return the images at `indices`, uint8 [B, 3, H, W], or a list of texts, and their labels, int64 [B]."""
        ...


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: Short name, unique among the tasks of one run.
        classes: Class names; label c means classes[c].
        splits: "train", "val" and "test".
        licence: SPDX identifier of the samples' licence, or "unknown".
        source: Where the samples come from, for a person to read.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    licence: str = "unknown"
    source: str = ""

    def __post_init__(self) -> None:
        missing = [split for split in SPLITS if split not in self.splits]
        if missing:
            raise DataError(f"task {self.name} needs the splits train, val and test, but lacks {', '.join(missing)}")
        empty = [split for split in SPLITS if len(self.splits[split]) == 0]
        if empty:
            raise DataError(f"task {self.name} has no sample in its {empty[0]} split")


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raise DataError unless every label lies in [0, num_classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        first = int(wrong[0])
        raise DataError(f"{where} must lie in [0, {num_classes}), one per class, got {labels[first]} at {first}")


def resize_uint8(images: Tensor, size: int) -> Tensor:
    """Scale the shorter side of each image to `size` and cut out the centre square.

    Bilinear with antialiasing, rounded to whole grey levels: at most 1/510 of the range from the exact value.

    Args:
        images: uint8 [B, C, H, W].
        size: Side of the result in pixels.

    Returns:
        uint8 [B, C, size, size].
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    target = [max(size, round(scale * height)), max(size, round(scale * width))]
    resized = functional.interpolate(images.float(), target, mode="bilinear", align_corners=False, antialias=True)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return resized[..., top : top + size, left : left + size].round_().clamp_(0, 255).to(torch.uint8)


class ArraySplit:
    """A split held in memory.

    Args:
        images: uint8, [N, H, W] (grey) or [N, H, W, 3] (RGB).
        labels: Integers, [N].
        num_classes: If given, labels are checked against it.

    Raises:
        DataError: If a shape, a dtype or a label does not fit.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> None:
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise DataError(f"images must be uint8 [N, H, W] or [N, H, W, 3], got {images.dtype} {list(images.shape)}")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"labels must be integers [N={len(images)}], got {labels.dtype} {list(labels.shape)}")
        labels = labels.astype(np.int64)
        if num_classes is not None:
            check_labels(labels, num_classes, "labels")
        planes = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        self._images = torch.from_numpy(np.array(planes, order="C"))  # [N, 1 or 3, H, W]
        self._labels = torch.from_numpy(labels)
        self._resized: dict[int, ArraySplit] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def get(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self._images[index].expand(-1, 3, -1, -1), self._labels[index]

    def at_size(self, size: int) -> ArraySplit:
        """The same split at `size` x `size` pixels; resized once and kept."""
        if self._images.shape[-2:] == (size, size):
            return self
        if size not in self._resized:
            copy = object.__new__(ArraySplit)
            copy._images = torch.cat([resize_uint8(part, size) for part in self._images.split(256)])
            copy._labels, copy._resized = self._labels, {}
            self._resized[size] = copy
        return self._resized[size]


class DecodedSplit:
    """A split whose images are opened when they are asked for.

    Args:
        fetch: Takes an index, returns the picture and its label.
        length: Number of images.
        num_classes: Labels are checked against it as they are read.
        size: Side in pixels of the images returned; None returns them as they are, and then the images of one
            batch must be of one size.
    """

    def __init__(
        self,
        fetch: Callable[[int], tuple[Image.Image, int]],
        length: int,
        num_classes: int,
        size: int | None = None,
    ) -> None:
        self._fetch, self._length, self._num_classes, self._size = fetch, length, num_classes, size

    def __len__(self) -> int:
        return self._length

    def get(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        pairs = [self._read(int(index)) for index in indices]
        sizes = {tuple(pixels.shape[1:]) for pixels, _ in pairs}
        if len(sizes) > 1:
            raise DataError(f"images of one batch differ in size, {sorted(sizes)[:2]}; ask for a size with at_size()")
        labels = np.array([label for _, label in pairs], np.int64)
        check_labels(labels, self._num_classes, "labels of the batch")
        return torch.stack([pixels for pixels, _ in pairs]), torch.from_numpy(labels)

    def at_size(self, size: int) -> DecodedSplit:
        """The same split at `size` x `size` pixels: shorter side scaled, then the centre cut out."""
        return DecodedSplit(self._fetch, self._length, self._num_classes, size)

    def _read(self, index: int) -> tuple[Tensor, int]:
        picture, label = self._fetch(index)
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        return (pixels if self._size is None else resize_uint8(pixels[None], self._size)[0]), int(label)


class SubsetSplit:
    """Some samples of another split, in the order of `indices`."""

    def __init__(self, split: Split, indices: Sequence[int] | Tensor) -> None:
        self._split = split
        self.indices = torch.as_tensor(indices, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def get(self, indices: Sequence[int] | Tensor) -> tuple[Any, Tensor]:
        return self._split.get(self.indices[torch.as_tensor(indices, dtype=torch.int64)])

    def at_size(self, size: int) -> SubsetSplit:
        """The same subset of the resized split."""
        return SubsetSplit(at_size(self._split, size), self.indices)


class _Resizing:
    """Gives any split `at_size` by resizing what `get` returns."""

    def __init__(self, split: Split, size: int) -> None:
        self._split, self._size = split, size

    def __len__(self) -> int:
        return len(self._split)

    def get(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self._split.get(indices)
        return resize_uint8(images, self._size), labels


def at_size(split: Split, size: int) -> Split:
    """Return `split` with images of `size` x `size` pixels, through its own `at_size` where it has one."""
    own = getattr(split, "at_size", None)
    return own(size) if own is not None else _Resizing(split, size)


def validation_split(split: Split) -> tuple[SubsetSplit, SubsetSplit]:
    """Carve a validation part out of a training split, as the task-arithmetic papers do.

    The last min(int(0.1 * N), 5000) places of a permutation from a torch generator with seed 0 become
    validation images. This equals torch.utils.data.random_split with that generator; for N = 60000 train
    begins with 36044.

    Returns:
        The training part and the validation part.

    Raises:
        DataError: If the split has fewer than ten images, so that nothing would be left to validate on.
    """
    val = min(int(0.1 * len(split)), 5000)
    if val == 0:
        raise DataError(f"cannot carve a validation part out of {len(split)} training samples; at least 10 are needed")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return SubsetSplit(split, order[:-val]), SubsetSplit(split, order[-val:])
