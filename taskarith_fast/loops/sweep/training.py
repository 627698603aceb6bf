"""Training recipes as grids: heads, masks and encoders that the sweep makes before it merges them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskarith_fast.errors import ArgumentError, TaskarithError
from taskarith_fast.loops.calibrate_config import CALIBRATE_PRESETS, CalibrateConfig
from taskarith_fast.loops.config import FINETUNE_PRESETS, PROBE_PRESETS, FinetuneConfig, describe
from taskarith_fast.loops.files import configured
from taskarith_fast.loops.recipes import RECIPES
from taskarith_fast.loops.sweep.grid import Point, expand
from taskarith_fast.loops.sweep.inputs import Inputs
from taskarith_fast.loops.sweep.job import Job, Made, Train, hash_of

_GIVEN = ("seed", "device", "threads", "sharding", "checkpoint_every", "feature_batch_size", "image_size")
"""Fields that the sweep sets, or that do not change the result."""
_TRAINING_COST = 3.5
"""An image that trains costs about this many that are only evaluated."""


@dataclass(frozen=True)
class Variant:
    """One way to fine-tune: a point of a [[train]] table."""

    labels: Point
    """What the table says of it, the settings of its masks as masks.NAME."""
    preset: str
    settings: Point
    config: FinetuneConfig
    masks_preset: str = ""
    masks_settings: Point = field(default_factory=dict)
    masks: CalibrateConfig | None = None

    @property
    def density(self) -> float:
        """Fraction of the maskable weights that it trains."""
        return 1.0 if self.masks is None else self.masks.density


def variants_of(table: Mapping[str, Any], where: str) -> list[Variant]:
    """All combinations of a [[train]] table.

    Raises:
        ArgumentError: If a setting is not known, is given by the sweep, or is out of its domain.
    """
    masks = table.get("masks", {})
    if not isinstance(masks, Mapping):
        raise ArgumentError(f"{where}.masks must be a table, [train.masks], got {masks!r}")
    points = expand({name: value for name, value in table.items() if name != "masks"}, where)
    selections = expand(masks, f"{where}.masks")
    variants: dict[str, Variant] = {}
    for point in points:
        for selection in selections:
            variant = _variant(point, selection if "masks" in table else None, where)
            variants[hash_of(variant.labels)] = variant
    if "masks" in table and all(variant.masks is None for variant in variants.values()):
        raise ArgumentError(f"{where}.masks must go with a sparse recipe such as talos, got none; leave it out")
    return list(variants.values())


def probe_job(inputs: Inputs, task: str, folder: Path) -> Job:
    """Train the head of a task."""
    preset, settings = _split(dict(inputs.file.probe), "probe")
    config = _configured(PROBE_PRESETS, preset, settings, "probe")
    identity = {
        "encoder": _encoder(inputs),
        "data": [inputs.fingerprints[task][split] for split in ("train", "val")],
        "config": _result(describe(config)),
    }
    key = hash_of(identity)
    work = Train(task, preset, settings, folder / "heads" / f"{task}-{key}.safetensors")
    cost = inputs.count(task, "train") + inputs.count(task, "val")
    return Job("probe", {"tasks": [task], **settings}, identity, work, f"probe {task}", cost=cost)


def masks_job(inputs: Inputs, task: str, variant: Variant, seed: int, head: Made, folder: Path) -> Job:
    """Choose the weights that a sparse recipe trains."""
    masks = variant.masks
    assert masks is not None
    settings = variant.masks_settings | {"seed": seed}
    identity = {
        "encoder": _encoder(inputs),
        "data": inputs.fingerprints[task][masks.split],
        "config": _result(describe(masks)) | {"seed": seed},
        "head": head.id,
    }
    output = folder / "masks" / f"{task}-{hash_of(identity)}.safetensors"
    work = Train(task, variant.masks_preset, settings, output, head.path)
    labels = {"tasks": [task], "seed": seed, **variant.masks_settings}
    images = min(masks.batches * masks.batch_size, inputs.count(task, masks.split))
    cost = _TRAINING_COST * masks.rounds * images
    return Job("masks", labels, identity, work, f"masks {output.stem}", needs=head.needs, cost=cost)


def finetune_job(
    inputs: Inputs, task: str, variant: Variant, seed: int, head: Made, masks: Made | None, folder: Path
) -> Job:
    """Fine-tune the encoder on one task, its head frozen."""
    config = variant.config
    identity = {
        "encoder": _encoder(inputs),
        "data": inputs.fingerprints[task]["train"],
        "config": _result(describe(config)) | {"seed": seed},
        "head": head.id,
        "masks": masks.id if masks else None,
    }
    output = folder / "models" / f"{task}-{hash_of(identity)}.safetensors"
    settings = variant.settings | {"seed": seed}
    work = Train(task, variant.preset, settings, output, head.path, masks.path if masks else None)
    labels = {"tasks": [task], "seed": seed, "recipe": variant.labels}
    needs = head.needs + (masks.needs if masks else ())
    images = config.total_steps(inputs.count(task, "train")) * config.batch_size * config.accumulation
    cost = _TRAINING_COST * images
    return Job("finetune", labels, identity, work, f"finetune {output.stem}", needs=needs, cost=cost)


def _variant(point: Point, selection: Point | None, where: str) -> Variant:
    preset, settings = _split(point, where)
    settings = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
    config = _configured(FINETUNE_PRESETS, preset, settings, where)
    sparse = RECIPES[config.recipe].kind == "masks"
    if sparse and selection is None:
        raise ArgumentError(f"{where}: recipe {config.recipe!r} trains masked weights; add [train.masks]")
    if not sparse or selection is None:
        return Variant(point, preset, settings, config)
    masks_preset, masks_settings = _split(selection, f"{where}.masks")
    masks = _configured(CALIBRATE_PRESETS, masks_preset, masks_settings, f"{where}.masks")
    if masks.method == "lota":
        raise ArgumentError(f"{where}.masks: method must be talos, magnitude or random in a sweep, got 'lota'")
    labels = point | {f"masks.{name}": value for name, value in selection.items()}
    return Variant(labels, preset, settings, config, masks_preset, masks_settings, masks)


def _split(point: Point, where: str) -> tuple[str, Point]:
    """Preset and settings."""
    settings = dict(point)
    preset = settings.pop("preset", "paper")
    for name in settings:
        if name in _GIVEN:
            raise ArgumentError(f"{where}.{name} is given by the sweep itself; leave it out")
    return preset, settings


def _configured(presets: Mapping[str, Any], preset: str, settings: Point, where: str) -> Any:
    try:
        return configured(presets, preset, settings)
    except TaskarithError as error:
        raise ArgumentError(f"{where}: {error}") from None
    except TypeError as error:
        raise ArgumentError(f"{where}: a setting has the wrong type ({error})") from None


def _result(config: Point) -> Point:
    """Those settings that a result depends on."""
    return {name: value for name, value in config.items() if name not in _GIVEN}


def _encoder(inputs: Inputs) -> list[Any]:
    return [inputs.choice.name, inputs.image_size, inputs.choice.depth, inputs.weights]
