"""Cases of analyses: a heat map of weight disentanglement, of an encoder and of a linearized one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contest import Contest
from taskarith_fast.analysis import disentanglement_error
from taskarith_fast.data import ArraySplit
from taskarith_fast.data.batches import batches
from taskarith_fast.loops.edits import EncoderEdits, LinearizedEdits
from taskarith_fast.models import VisionTransformer, VitConfig, random_head
from taskarith_fast.tangent import linearize
from taskarith_fast.task_vector import TaskVector

_TASKS = ("a", "b")


def disentanglement(
    points: int = 20, images: int = 64, depth: int = 8, *, rows: int = 2, linearized: bool = False
) -> Contest:
    """One pair of tasks on points x points scales, against the loop that evaluates four models at every point.

    The loop does `rows` rows of the grid, all alike, for the whole takes an hour: its bar is over `points` / `rows`.
    Time is proportional to the images on both sides.
    """
    size = 56
    torch.manual_seed(0)
    encoder = VisionTransformer(VitConfig(image_size=size, depth=depth, final_norm=False)).eval()
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    states = [{n: t + 0.02 * torch.randn_like(t) for n, t in base.items()} for _ in _TASKS]
    taus = [TaskVector.between(base, state) for state in states]
    rng = np.random.default_rng(0)
    splits = {
        name: ArraySplit(rng.integers(0, 256, (images, size, size, 3), np.uint8), np.zeros(images, np.int64))
        for name in _TASKS
    }
    heads = {name: random_head(384, 10, seed=i) for i, name in enumerate(_TASKS)}
    scales = np.linspace(-3, 3, points).tolist()

    def ours() -> np.ndarray:
        kind = LinearizedEdits if linearized else EncoderEdits
        edits = kind(encoder, base, states, splits, heads)
        return disentanglement_error(edits, scales=scales).error

    def predictions(model: nn.Module, name: str) -> Tensor:
        found = [
            heads[name](model(pixels)).argmax(-1)
            for pixels, _ in batches(splits[name], batch_size=128, image_size=size, mean=encoder.mean, std=encoder.std)
        ]
        return torch.cat(found)

    def loop(rows: list[float], move: Callable[[Any, TaskVector], None], model: nn.Module) -> np.ndarray:
        errors = np.zeros((len(rows), points))
        with torch.inference_mode():
            for i, one in enumerate(rows):
                for j, two in enumerate(scales):
                    for name, alone in zip(_TASKS, (one * taus[0], two * taus[1]), strict=True):
                        move(model, alone)
                        single = predictions(model, name)
                        move(model, one * taus[0] + two * taus[1])
                        errors[i, j] += float((single != predictions(model, name)).double().mean())
        return errors

    def written(model: nn.Module, tau: TaskVector) -> None:
        model.load_state_dict(tau.apply(base))

    def loaded(model: Any, tau: TaskVector) -> None:
        model.load_tau(tau)

    model, move = (linearize(encoder), loaded) if linearized else (copy.deepcopy(encoder), written)
    tokens = (size // 14) ** 2 + 1
    forward = 2 * images * tokens * depth * 12 * 384 * 384
    flops = 2 * 5 * forward if linearized else (2 * points + 2 * points**2) * forward
    name = f"straightforward loop, {rows} row{'s' * (rows > 1)} of {points}"
    return Contest(
        ours={"taskarith_fast": ours}, baselines={name: lambda: loop(scales[:rows], move, model)}, flops=flops
    )
