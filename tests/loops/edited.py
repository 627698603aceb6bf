"""Two tasks, their heads and fine-tuned encoders, and the answers of edited models computed by the book."""

from __future__ import annotations

import torch
from torch import Tensor

from taskarith_fast.data import SubsetSplit
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit

TASKS = ("a", "b")


def splits(images: int = 40):
    """The images of two tasks, of different number."""
    test = digits().splits["test"]
    return {"a": SubsetSplit(test, range(images)), "b": SubsetSplit(test, range(images, 2 * images + 8))}


def heads(normalize: bool = False):
    """One random head a task, with a bias that is not zero."""
    return {name: random_head(16, 10, seed=i, normalize=normalize) for i, name in enumerate(TASKS)}


def moved(base, seed: int, names=lambda name: True, size: float = 0.3):
    """`base` with noise on the tensors that `names` selects."""
    g = torch.Generator().manual_seed(seed)
    return {n: t + size * torch.randn(t.shape, generator=g) if names(n) else t.clone() for n, t in base.items()}


def base():
    """The weights of the tiny encoder."""
    return {name: tensor.clone() for name, tensor in vit().state_dict().items()}


def pixels(split) -> Tensor:
    """A split's images as the tiny encoder wants them, [N, 3, 8, 8]."""
    images, _ = split.get(range(len(split)))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (vit().mean, vit().std))
    return (images.float() / 255 - mean) / std


def features(origin, states, point, split) -> Tensor:
    """Features of theta_0 + sum_t s_t tau_t on all images of a split at once: a fresh model, weights in float64."""
    deltas = [{n: s[n].double() - t.double() for n, t in origin.items()} for s in states]
    state = {
        n: (t.double() + sum(s * d[n] for s, d in zip(point, deltas, strict=True))).float() for n, t in origin.items()
    }
    encoder = vit().eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        return encoder(pixels(split))


def classes(head, x: Tensor) -> Tensor:
    """Predicted classes of features."""
    with torch.no_grad():
        return head(x).argmax(-1)
