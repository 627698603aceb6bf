"""What a reproduction runs on: the papers' data and encoders where they are, else the shipped tasks and backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from taskarith_fast import data
from taskarith_fast.loops.config import FINETUNE_PRESETS, PROBE_PRESETS, FinetuneConfig
from taskarith_fast.loops.demo import at_device, limit_tasks
from taskarith_fast.loops.demo_config import PRESETS, RECIPES, DemoConfig
from taskarith_fast.loops.runtime import resolve_device
from taskarith_fast.models import load_encoder

PAPER_TASKS = ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
_ALL = 10**9
_EPOCHS_QUICK = 2

_DEMO = FINETUNE_PRESETS["demo_qkvo"]
_RECIPES: dict[str, FinetuneConfig] = {
    **{key: config for key, (_, config) in RECIPES.items()},
    **{key: dataclasses.replace(_DEMO, recipe=key) for key in ("p2", "p3", "p4")},
    "lora": dataclasses.replace(_DEMO, recipe="lora", lr=1e-3),
}


@dataclass(frozen=True)
class Setting:
    """Encoder, tasks and sizes."""

    config: DemoConfig
    """Without recipes."""
    encoder: nn.Module
    tasks: Mapping[str, data.Task]
    papers: bool
    """Whether these are the papers' data, encoder and protocol."""

    @property
    def words(self) -> str:
        """What ran, in a sentence or two."""
        names = ", ".join(self.tasks)
        if self.papers:
            return f"The paper's protocol with {self.config.encoder} on {names}."
        return (
            f"The paper's data and encoder are not used here: the same protocol ran on {self.config.encoder} and the "
            f"tasks {names}, shipped with the package, at most {self.config.train} training images each. Numbers "
            "can therefore not agree with the paper's; whether its statements carry over is what this page shows."
        )

    def recipe(self, key: str) -> FinetuneConfig:
        """How a recipe is trained here."""
        if self.papers:
            return dataclasses.replace(FINETUNE_PRESETS["paper"], recipe=_RECIPES[key].recipe)
        config = _RECIPES[key]
        return dataclasses.replace(config, epochs=_EPOCHS_QUICK) if self.config.preset == "quick" else config


def shipped(*, quick: bool, seeds: int, device: str, encoder: str | None = None) -> Setting:
    """The shipped tasks, and the shipped backbone unless another encoder is named."""
    own = encoder is None
    config = dataclasses.replace(PRESETS["quick" if quick else "default"], recipes={}, seeds=tuple(range(seeds)))
    config = dataclasses.replace(config, adaptation_steps=30 if quick else 100, sensitivity_images=32 if quick else 64)
    if not quick:
        config = dataclasses.replace(config, train=400, val=100)
    if encoder is not None:
        config = dataclasses.replace(config, encoder=encoder, depth=None, image_size=None)
    tasks = limit_tasks(data.load_tasks(config.tasks), config)
    return _made(config, tasks, device, papers=False, image_size=config.image_size if own else None)


def papers(root: Path, encoder: str, *, heads: str, seeds: int, device: str) -> Setting:
    """The papers' eight tasks below `root`, and one of their encoders.

    Raises:
        DataError: If one of the datasets is missing.
        CheckpointError: If the encoder's weights are.
    """
    config = DemoConfig(
        preset="papers", encoder=encoder, depth=None, image_size=None, tasks=PAPER_TASKS, train=_ALL, val=_ALL,
        test=_ALL, seeds=tuple(range(seeds)), probe=PROBE_PRESETS["paper"], heads=heads, recipes={},
    )  # fmt: skip
    tasks = {name: data.load_torchvision(name, root) for name in PAPER_TASKS}
    return _made(config, tasks, device, papers=True, image_size=None)


def _made(
    config: DemoConfig, tasks: Mapping[str, data.Task], device: str, *, papers: bool, image_size: int | None
) -> Setting:
    place = str(resolve_device(device))
    encoder = load_encoder(config.encoder, image_size=image_size, depth=config.depth).to(place)
    return Setting(at_device(config, place), encoder, tasks, papers)
