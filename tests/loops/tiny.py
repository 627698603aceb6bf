"""A task and an encoder small enough to train in a test: scikit-learn's digits, 8 x 8 pixels."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from taskarith_fast.data import ArraySplit, Task
from taskarith_fast.models import VisionTransformer, VitConfig

SIZE = 8


@cache
def digits(first: int = 0, classes: int = 10, train: int = 400) -> Task:
    """Digits `first` to `first + classes - 1`: `train` training, 200 validation and 200 test images."""
    bunch = load_digits()
    rows = np.flatnonzero((bunch.target >= first) & (bunch.target < first + classes))
    images = (bunch.images[rows] * 15.9).astype(np.uint8)
    labels = bunch.target[rows] - first
    ends = {"train": (0, train), "val": (train, train + 200), "test": (train + 200, train + 400)}
    splits = {name: ArraySplit(images[a:b], labels[a:b]) for name, (a, b) in ends.items()}
    names = tuple(str(first + c) for c in range(classes))
    return Task(f"digits{first}", names, splits, "BSD-3-Clause", "scikit-learn")


def vit(seed: int = 0) -> VisionTransformer:
    """A transformer of two blocks, width 16, on patches of 4 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = VitConfig(image_size=SIZE, patch_size=4, position_grid=2, width=16, depth=2, heads=2)
        return VisionTransformer(config)


class Pixels(nn.Module):
    """The pixels of the first channel, in [0, 1], as features."""

    feature_dim, image_size, normalize_features = SIZE * SIZE, SIZE, False
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Flatten images [B, 3, 8, 8] to [B, 64]."""
        return images[:, 0].flatten(1)
