"""Small pictures and tasks for the data tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from taskarith_fast.data import ArraySplit, Split


def grey_images(count: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    """Random uint8 images [count, height, width]."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


def array_split(count: int, num_classes: int = 3, height: int = 8, width: int = 8) -> ArraySplit:
    return ArraySplit(grey_images(count, height, width), np.arange(count) % num_classes, num_classes)


def write_png(path: Path, value: int, size: tuple[int, int] = (10, 8)) -> None:
    """A one-colour RGB picture whose red channel is `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def write_folder(root: Path, counts: Mapping[str, int], classes: Sequence[str] = ("cat", "dog")) -> None:
    """Write counts[split] pictures per class below root/split/class; red is 16 * label + number."""
    for split, count in counts.items():
        for label, name in enumerate(classes):
            for number in range(count):
                write_png(root / split / name / f"{number:02d}.png", 16 * label + number)


def all_labels(split: Split) -> list[int]:
    return split.get(range(len(split)))[1].tolist()
