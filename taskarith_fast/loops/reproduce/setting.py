"""What a reproduction runs on: the papers' data and encoders where they are, else the shipped tasks and backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from taskarith_fast import data
from taskarith_fast.loops.config import FINETUNE_PRESETS, PROBE_PRESETS, FinetuneConfig
from taskarith_fast.loops.demo import at_device, limit_tasks
from taskarith_fast.loops.demo_config import PRESETS, RECIPES, DemoConfig
from taskarith_fast.loops.merge import SCALES
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
    "head_too": dataclasses.replace(RECIPES["full"][1], train_head=True),
    "random_head": dataclasses.replace(RECIPES["full"][1], train_head=True, head_lr=DemoConfig.random_head_lr),
}


@dataclass(frozen=True)
class Variant:
    """The shipped backbone as one of several encoders that are compared."""

    label: str
    depth: int | None = DemoConfig.depth
    """Blocks that are kept."""
    pretrained: bool = True
    """False draws random weights."""


OWN = Variant("")


@dataclass(frozen=True)
class Setting:
    """Encoder, tasks and sizes."""

    config: DemoConfig
    """Without recipes."""
    encoder: nn.Module
    tasks: Mapping[str, data.Task]
    papers: bool
    """Whether these are the papers' data, encoder and protocol."""
    label: str = ""
    """What the encoder is called beside others; empty takes its name."""

    @property
    def name(self) -> str:
        """The encoder in a word or two."""
        return self.label or self.config.encoder

    def recipe(self, key: str) -> FinetuneConfig:
        """How a recipe is trained here."""
        config = _RECIPES[key]
        if self.papers:
            same = {name: getattr(config, name) for name in ("recipe", "train_head", "head_lr")}
            return dataclasses.replace(FINETUNE_PRESETS["paper"], **same)
        return dataclasses.replace(config, epochs=_EPOCHS_QUICK) if self.config.preset == "quick" else config


def words_of(settings: Sequence[Setting]) -> str:
    """What ran, in a sentence or two."""
    first = settings[0]
    names = ", ".join(first.tasks)
    encoders = "; ".join(f"{s.label} ({s.config.encoder})" if s.label else s.config.encoder for s in settings)
    if first.papers:
        return f"The paper's protocol with {encoders} on {names}."
    return (
        f"The paper's data and encoder are not used here: the same protocol ran on {encoders} and the tasks {names}, "
        f"shipped with the package, at most {first.config.train} training images each. Numbers can therefore not agree "
        "with the paper's; whether its statements carry over is what this page shows."
    )


def shipped(
    *, quick: bool, seeds: int, device: str, encoder: str | None = None, variant: Variant = OWN
) -> Setting:  # fmt: skip
    """The shipped tasks, and a variant of the shipped backbone unless another encoder is named."""
    config = dataclasses.replace(PRESETS["quick" if quick else "default"], recipes={}, seeds=tuple(range(seeds)))
    if quick:
        coarse = SCALES[::4]
        config = dataclasses.replace(
            config,
            adaptation_steps=10,
            sensitivity_images=32,
            task_arithmetic_scales=coarse,
            ties_scales=tuple(2 * scale for scale in coarse),
        )
    else:
        config = dataclasses.replace(config, adaptation_steps=100, train=400, val=100)
    if encoder is None:
        config = dataclasses.replace(config, depth=variant.depth)
    else:
        config = dataclasses.replace(config, encoder=encoder, depth=None, image_size=None)
        variant = Variant("")
    tasks = limit_tasks(data.load_tasks(config.tasks), config)
    return _made(config, tasks, device, variant)


def papers(root: Path, encoder: str, *, heads: str, seeds: int, device: str, label: str = "") -> Setting:
    """The papers' eight tasks below `root`, and one of their encoders, which is called `label` beside others.

    Raises:
        DataError: If one of the datasets is missing.
        CheckpointError: If the encoder's weights are.
    """
    config = DemoConfig(
        preset="papers", encoder=encoder, depth=None, image_size=None, tasks=PAPER_TASKS, train=_ALL, val=_ALL,
        test=_ALL, seeds=tuple(range(seeds)), probe=PROBE_PRESETS["paper"], heads=heads, recipes={},
    )  # fmt: skip
    tasks = {name: data.load_torchvision(name, root) for name in PAPER_TASKS}
    return _made(config, tasks, device, Variant(label))


def _made(config: DemoConfig, tasks: Mapping[str, data.Task], device: str, variant: Variant) -> Setting:
    place = str(resolve_device(device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of random weights
        encoder = load_encoder(
            config.encoder, pretrained=variant.pretrained, image_size=config.image_size, depth=config.depth
        ).to(place)
    return Setting(at_device(config, place), encoder, tasks, config.preset == "papers", variant.label)
