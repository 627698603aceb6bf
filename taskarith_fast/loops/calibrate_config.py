"""What a calibration of masks is told: frozen, checked when made, saved with the masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.inputs import Inputs
from taskarith_fast.loops.calibrate import METHODS
from taskarith_fast.loops.evaluate import batches_of
from taskarith_fast.loops.scoring import LABELS, TARGETS


@dataclass(frozen=True)
class CalibrateConfig:
    """Choosing the weights that a sparse fine-tuning trains; the defaults are TaLoS's paper."""

    method: str = "talos"
    """"talos", "lota", "magnitude" or "random"."""
    density: float = 0.1
    """Fraction of the maskable weights that is kept trainable."""
    rounds: int = 4
    """Rounds of "talos"."""
    score: str = "logprob"
    """Gradient of "logprob" or of the raw "logit" that "talos" squares."""
    labels: str = "sampled"
    """Classes: "sampled" from the model, "exact" (all), or the given "label"."""
    soft_mask: float = 0.01
    """What weights dropped in earlier rounds are multiplied by."""
    largest: bool = True
    """For "magnitude": keep the largest weights; False keeps the smallest."""
    freeze_unmaskable: bool = True
    """Freeze class and position embeddings and the final projection; False trains them whole."""
    split: str = "val"
    """Split whose images are used."""
    batches: int = 10
    """Batches a round; the same ones in each."""
    batch_size: int = 128
    """Images a batch."""
    batch_split: int | None = None
    """Most images a forward pass, to bound memory; None takes whole batches."""
    checkpoint_activations: bool = False
    """Compute the blocks twice and keep only their inputs, to bound memory."""
    seed: int = 0
    """Seed of the images' choice, of sampled classes, and of "random"."""
    image_size: int | None = None
    """Side of the images in pixels; None takes the encoder's."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N"."""
    threads: int | None = None
    """CPU threads; None leaves torch's number."""

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("score", self.score, TARGETS)
        check_choice("labels", self.labels, LABELS)
        check_choice("split", self.split, ("train", "val", "test"))
        for name in ("rounds", "batches", "batch_size"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")

    def options(self) -> dict[str, Any]:
        """The arguments of ``calibrate`` that this holds."""
        names = ("method", "density", "rounds", "score", "labels", "soft_mask", "largest", "freeze_unmaskable")
        return {name: getattr(self, name) for name in (*names, "batch_split", "checkpoint_activations", "seed")}


CALIBRATE_PRESETS = {
    "paper": CalibrateConfig(),
    "code": CalibrateConfig(score="logit", soft_mask=0.1, freeze_unmaskable=False),
}
"""TaLoS's paper, and what its code does."""


class CalibrationBatches:
    """The first batches of a split in a shuffled order, the same ones at each pass.

    Args:
        encoder: As batches_of's.
        split: Images and labels.
        config: Says how many, how large and in which order.
        device: Where the batches go.
    """

    def __init__(self, encoder: nn.Module, split: data.Split, config: CalibrateConfig, device: torch.device) -> None:
        self._encoder, self._split, self._config, self._device = encoder, split, config, device

    def __len__(self) -> int:
        return min(self._config.batches, -(-len(self._split) // self._config.batch_size))

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        config = self._config
        order: dict[str, Any] = {"shuffle": True, "seed": config.seed, "device": self._device}
        batches = batches_of(
            self._encoder, self._split, batch_size=config.batch_size, image_size=config.image_size, **order
        )
        return itertools.islice(batches, config.batches)
