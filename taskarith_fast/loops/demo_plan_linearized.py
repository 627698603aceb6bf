"""The stages of the demo that need linearized encoders, in an order in which every stage comes after those it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from taskarith_fast.loops import demo_linearized as compute
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.demo_config import settings_of
from taskarith_fast.loops.demo_stages import Workshop
from taskarith_fast.loops.stages import Stage

if TYPE_CHECKING:
    from taskarith_fast.loops.demo_plan import Planner

StageMap = dict[str, Stage[Workshop]]

# An image whose gradients are compared costs about this many that are only evaluated.
_SENSITIVITY_COST = 7.0


def linearized_stages(planner: Planner, label: str, models: StageMap) -> StageMap:
    """A linearized recipe: evaluation, merges and negation from one set of features and derivatives."""
    encoded = _encoded(planner, label, models, ("sum", "own", "previous"), ("val", "test"))
    read = {name: stage for name, stage in models.items() if name.startswith("probe/")} | {"tangents": encoded}
    run = partial(compute.evaluate_own, splits=("val", "test"))
    own = _light(planner, "Evaluation", f"evaluate-individual-{label}", run, read)
    stages = {
        "individual": own,
        "average": _light(planner, "Evaluation", f"merge-average-{label}", compute.merge_average, read),
        "task_arithmetic": _light_search(planner, f"merge-task_arithmetic-{label}", read | {"individual": own}),
    }
    if not planner.config.negation_scales:
        return stages
    for task in planner.tasks:
        scales = planner.config.linearized_negation_scales
        words: dict[str, Any] = {"target": task, "control": planner.control(task), "scales": scales}
        run = partial(compute.negate, **words)
        stages[f"negate/{task}"] = _light(planner, "Negation", f"negate-{label}-{task}", run, read, words)
    return stages


def post_hoc_stages(
    planner: Planner, label: str, models: StageMap, individual: Stage[Workshop], *, merged: bool
) -> StageMap:
    """An ordinary recipe linearized after the fact: each task, and if `merged`, task arithmetic too."""
    directions, splits = (("sum", "own"), ("val", "test")) if merged else (("own",), ("test",))
    encoded = _encoded(planner, label, models, directions, splits)
    read = {name: stage for name, stage in models.items() if name.startswith("probe/")} | {"tangents": encoded}
    run = partial(compute.evaluate_own, splits=("test",))
    stages = {"post_hoc_own": _light(planner, "Linearized post hoc", f"post-hoc-{label}", run, read)}
    if merged:
        stages["post_hoc"] = _light_search(planner, f"merge-post-hoc-{label}", read | {"individual": individual})
    return stages


def _encoded(
    planner: Planner, label: str, models: StageMap, directions: tuple[str, ...], splits: tuple[str, ...]
) -> Stage[Workshop]:
    """What the other stages read; the one that costs."""
    words: dict[str, Any] = {"directions": directions, "splits": splits}
    run = partial(compute.encode_tangents, **words)
    cost = (1 + 2 * len(directions)) * sum(planner.images[split] for split in splits)
    tuned = {name: stage for name, stage in models.items() if name.startswith("finetune/")}
    return planner.add(
        "Features and derivatives", f"tangents-{label}", run, _plain(words) | {"data": planner.data}, tuned, cost
    )


def _light_search(planner: Planner, name: str, read: StageMap) -> Stage[Workshop]:
    words: dict[str, Any] = {"scales": planner.config.task_arithmetic_scales}
    return _light(planner, "Merging, search and test", name, partial(compute.merge_searched, **words), read, words)


def _light(
    planner: Planner,
    group: str,
    name: str,
    run: Callable[..., Any],
    read: StageMap,
    words: Mapping[str, Any] | None = None,
) -> Stage[Workshop]:
    """A stage that multiplies stored features."""
    return planner.add(group, name, run, _plain(words or {}) | {"data": planner.data}, read, 1)


def sensitivity_stage(
    planner: Planner, label: str, config: FinetuneConfig, probes: StageMap, masks: StageMap
) -> Stage[Workshop]:
    """One task fine-tuned once more, for the curve of its sensitivity."""
    task, study = next(iter(planner.tasks)), planner.config
    words: dict[str, Any] = {"task": task, "images": study.sensitivity_images, "points": study.sensitivity_points}
    run = partial(compute.measure_sensitivity, config=config, **words)
    inputs = {f"probe/{task}": probes[f"probe/{task}"]} | ({"masks": masks[task]} if masks else {})
    settings = words | {"finetune": settings_of(config), "data": planner.data[task]}
    cost = planner.training_cost(config, len(planner.tasks[task].splits["train"]))
    cost += _SENSITIVITY_COST * study.sensitivity_images * (1 + study.sensitivity_points)
    return planner.add("Sensitivity over training", f"sensitivity-{label}", run, settings, inputs, cost)


def _plain(words: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a stage as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in words.items()}
