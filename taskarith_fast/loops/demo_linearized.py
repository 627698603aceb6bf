"""What the demo computes about linearized encoders: linearized recipes, and ordinary ones linearized post hoc.

The features of every task's images and their derivatives are one stage, which all others read: along a task's own
vector ("own"), that of the task before it ("previous", for which it is the control), and the sum of all ("sum").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.demo_stages import Evaluations, Workshop, facts_of, recorded, stacked, validated
from taskarith_fast.loops.evaluate import Evaluation, batches_of, evaluating
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.merge import line_search
from taskarith_fast.loops.negation import search_scale_of_negation
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.sensitivity import sensitivity_change
from taskarith_fast.loops.stages import Artefact, Made
from taskarith_fast.tangent import TangentFeatures

Tau = dict[str, Tensor]


def encode_tangents(
    shop: Workshop, inputs: dict[str, Artefact], *, directions: Sequence[str], splits: Sequence[str]
) -> Made:
    """Features "value", derivatives by direction, and labels, as ``<split>/<task>/<what>``."""
    taus = {name: _tau(shop, inputs, name) for name in shop.tasks}
    names, tensors = list(shop.tasks), dict[str, Tensor]()
    # Masks of one task may select nothing in a tensor that another's train.
    trained = dict.fromkeys(n for tau in taus.values() for n in tau)
    total: Tau = {n: sum(tau[n] for tau in taus.values() if n in tau) for n in trained}  # type: ignore[misc]
    for place, name in enumerate(names):
        along = {"own": taus[name], "previous": taus[names[place - 1]]}
        along["sum"] = total
        for split in splits:
            images = shop.tasks[name].splits[split]
            batches = batches_of(shop.encoder, images, batch_size=64, image_size=None, device=device_of(shop.encoder))
            found = TangentFeatures(shop.encoder, batches, [along[direction] for direction in directions])
            parts = {"value": found.value, "labels": found.labels, **dict(zip(directions, found.tangents, strict=True))}
            tensors |= {f"{split}/{name}/{what}": part.cpu().contiguous() for what, part in parts.items()}  # type: ignore[union-attr]
            shop.advance((1 + 2 * len(directions)) * len(images))
    return {}, tensors


def evaluate_own(shop: Workshop, inputs: dict[str, Artefact], *, splits: Sequence[str]) -> Made:
    """Every linearized encoder on its own task."""
    points = {split: [_evaluate(shop, inputs, split, "own", 1.0)] for split in splits}
    return {}, _stacks(points)


def merge_average(shop: Workshop, inputs: dict[str, Artefact]) -> Made:
    """The mean of the task vectors."""
    points = {split: [_evaluate(shop, inputs, split, "sum", 1 / len(shop.tasks))] for split in ("val", "test")}
    return {"chosen": {}}, _stacks(points)


def merge_searched(shop: Workshop, inputs: dict[str, Artefact], *, scales: Sequence[float]) -> Made:
    """Task arithmetic: the sum of the task vectors at the scale that does best on validation images."""
    found = line_search(
        {}, [], lambda scale: _evaluate(shop, inputs, "val", "sum", scale), "task_arithmetic", {"scale": scales},
        reference=recorded(inputs["individual"], "val"), progress=shop.progress,
        make_states=lambda points: (point["scale"] for point in points),
    )  # fmt: skip
    chosen = _evaluate(shop, inputs, "test", "sum", found.parameters["scale"])
    return facts_of(found), validated(found) | stacked("test", [chosen])


def negate(shop: Workshop, inputs: dict[str, Artefact], *, target: str, control: str, scales: Sequence[float]) -> Made:
    """Subtract a task vector as far as the next task, its control, allows; before and after on test images."""

    def both(split: str, scale: float) -> dict[str, Evaluation]:
        return {
            target: _evaluate_task(shop, inputs, split, target, "own", -scale),
            control: _evaluate_task(shop, inputs, split, control, "previous", -scale),
        }

    found = search_scale_of_negation(
        lambda scale: both("val", scale), target=target, control=control, scales=scales, progress=shop.progress
    )
    facts = {"target": target, "control": control, "chosen": {"scale": found.best.scale}}
    return facts, stacked("test", [both("test", 0.0), both("test", found.best.scale)])


def measure_sensitivity(
    shop: Workshop, inputs: dict[str, Artefact], *, task: str, config: FinetuneConfig, images: int, points: int
) -> Made:
    """Fine-tune once more, and measure at some steps how far per-image gradients have moved from the start's."""
    head, encoder = shop.head(inputs[f"probe/{task}"].tensors), shop.encoder
    masks = shop.masks(inputs["masks"].tensors) if "masks" in inputs else None
    steps = config.total_steps(len(shop.tasks[task].splits["train"]))
    at = sorted({max(1, round(steps * (i + 1) / points)) for i in range(points)})
    config = dataclasses.replace(config, snapshots=tuple(at))
    snapshots = finetune(encoder, head, shop.tasks[task], config, shop.progress, masks=masks).snapshots
    split = shop.tasks[task].splits["val"]
    batches = list(batches_of(encoder, split, batch_size=32, image_size=None, device=device_of(encoder)))
    some = batches[: max(1, images // 32)]
    found = sensitivity_change(encoder, some, [snapshots[step] for step in at], head=head, progress=shop.progress)
    return {"task": task, "step": [0, *at], "change": [0.0, *found.relative]}, {}


def _tau(shop: Workshop, inputs: Mapping[str, Artefact], task: str) -> Tau:
    return {name: end - shop.base[name] for name, end in inputs[f"finetune/{task}"].tensors.items()}


def _evaluate(
    shop: Workshop, inputs: Mapping[str, Artefact], split: str, direction: str, scale: float
) -> dict[str, Evaluation]:
    return {name: _evaluate_task(shop, inputs, split, name, direction, scale) for name in shop.tasks}


def _evaluate_task(
    shop: Workshop, inputs: Mapping[str, Artefact], split: str, task: str, direction: str, scale: float
) -> Evaluation:
    """The linearized encoder at `scale` along a direction, from stored features."""
    head, stored = shop.head(inputs[f"probe/{task}"].tensors), inputs["tangents"].tensors
    value, tangent, labels = (stored[f"{split}/{task}/{what}"] for what in ("value", direction, "labels"))
    with evaluating(head):
        features = torch.add(value, tangent, alpha=scale).to(device_of(head))
        return Evaluation(head(features).argmax(dim=-1).cpu() == labels)


def _stacks(points: Mapping[str, Sequence[Evaluations]]) -> Tau:
    return {name: tensor for split, found in points.items() for name, tensor in stacked(split, found).items()}
