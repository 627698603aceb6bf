"""What a fine-tuning run needs in memory, said before it starts.

    peak = weights + optimizer state + max(activations of one pass, gradients) + what a pass works with

Gradients grow while activations shrink, so the larger of the two counts, and both where passes are accumulated.
Weights, gradients and state follow from shapes; what the forward pass keeps is measured on one image and on two.
The images themselves and what torch needs to be loaded come on top.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.inputs import Inputs
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.objective import Objective
from taskarith_fast.loops.recipes import RECIPES, has_compact_gradients, linearized, prepare, surroundings
from taskarith_fast.loops.runtime import device_of, resolve_device
from taskarith_fast.masks import Masks
from taskarith_fast.merging.checks import format_size
from taskarith_fast.models.activations import Kept, measure_kept

_STATE_BYTES = 8  # AdamW's two moments in float32
_TEXT_LENGTH = 128  # tokens of a text where nothing sets a limit
_INDEX_BYTES = 2  # of an entry that a mask selects
# Gradients of activations that are alive at once where they are largest: of an MLP's hidden layer, before and after
# its nonlinearity. Linearized, their tangents are there too.
_WORKING_COPIES, _WITH_TANGENTS = 2, 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run needs on the device it runs on, in each process."""

    config: FinetuneConfig
    """The run."""
    weights: int
    """The model that is trained, its heads, and the encoder it is a copy of where that is on the same device."""
    gradients: int
    optimizer: int
    """State of the optimizer, and indices of masked entries."""
    activations: int
    """What one forward pass keeps."""
    working: int
    """What the backward pass works with besides."""

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        accumulated = self.config.accumulation > 1
        passing = self.activations + self.working
        changing = passing + self.gradients if accumulated else max(passing, self.gradients)
        return self.weights + self.optimizer + changing

    def lines(self) -> list[str]:
        """The plan, to print."""
        parts = ("weights", "gradients", "optimizer", "activations", "working")
        images = f"{self.config.batch_size} images a pass"
        return [
            f"recipe {self.config.recipe}, {images}, {self.config.accumulation} passes a step",
            *(f"{part:12s} {format_size(getattr(self, part)):>10s}" for part in parts),
            f"{'peak':12s} {format_size(self.peak):>10s}",
        ]


def plan_finetune(
    encoder: nn.Module, head: nn.Module, config: FinetuneConfig | None = None, masks: Masks | None = None
) -> MemoryPlan:
    """Say what a fine-tuning run would need.

    Args:
        encoder: Maps images [B, 3, S, S] to features [B, D]; not changed.
        head: Maps features to logits; not changed.
        config: None for the papers'.
        masks: As `finetune`'s.

    Raises:
        ArgumentError: As `recipes.prepare`.
    """
    config = config or FinetuneConfig()
    return _planner(encoder, head, config, masks)(config)


def check_memory(plan: MemoryPlan, limit: int, encoder: nn.Module, head: nn.Module, masks: Masks | None = None) -> None:
    """Refuse a run that needs more than `limit` bytes, naming changes with which it would fit.

    Args:
        plan: What `plan_finetune` says of the run.
        limit: Bytes.
        encoder, head, masks: As `plan_finetune`'s.

    Raises:
        ArgumentError: If it does not fit.
    """
    if plan.peak <= limit:
        return
    fitting = list(_fitting(plan.config, limit, encoder, head, masks))
    hint = "it would fit with " + "; or ".join(fitting) if fitting else "no smaller batch or recipe fits either"
    raise ArgumentError(
        f"max_memory must be at least {format_size(plan.peak)} for this run, got {format_size(limit)}; {hint}"
    )


def _planner(
    encoder: nn.Module, head: nn.Module, config: FinetuneConfig, masks: Masks | None
) -> Callable[[FinetuneConfig], MemoryPlan]:
    """Measure a recipe once; the plans for its batch sizes, and with checkpointing, follow."""
    classifier = copy.deepcopy(head).requires_grad_(config.train_head)
    prepared = prepare(copy.deepcopy(encoder).train(), dataclasses.replace(config, checkpoint_activations=False), masks)
    objective = Objective(prepared.encoder, [classifier], prepared.adapter, config)
    device = device_of(objective)

    def forward(images: int) -> torch.Tensor:
        labels = torch.zeros(images, dtype=torch.long, device=device)
        return objective([(_blank(encoder, config, images, device), labels, 1.0)])

    with torch.random.fork_rng(devices=[]), surroundings(prepared, config, masks, _processes()):
        kept = measure_kept(objective, forward)
    return lambda config: _plan(encoder, objective, config, masks, kept)


def _blank(encoder: Any, config: FinetuneConfig, count: int, device: torch.device) -> Inputs:
    """Images, or texts as long as the tokenizer lets them be."""
    if not hasattr(encoder, "tokenizer"):
        size = config.image_size or encoder.image_size
        return torch.zeros(count, 3, size, size, device=device)
    ids = torch.zeros(count, encoder.tokenizer.max_length or _TEXT_LENGTH, dtype=torch.long, device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _plan(
    encoder: nn.Module, objective: Objective, config: FinetuneConfig, masks: Masks | None, kept: Kept
) -> MemoryPlan:
    processes = _processes()
    images = -(-config.batch_size // processes)
    shards = processes if config.sharding == "fsdp" else 1
    copies = _WITH_TANGENTS if RECIPES[config.recipe].linearized else _WORKING_COPIES
    weights = _bytes(objective) // shards
    if resolve_device(config.device).type == device_of(encoder).type:
        weights += _bytes(encoder)
    return MemoryPlan(
        config,
        weights=weights,
        gradients=_gradient_bytes(objective, config, masks) // shards,
        optimizer=_state_bytes(objective, masks) // shards,
        activations=kept.bytes(images, config.checkpoint_activations),
        working=copies * (kept.largest[0] + images * kept.largest[1]),
    )


def _gradient_bytes(objective: Objective, config: FinetuneConfig, masks: Masks | None) -> int:
    """Of dense gradients, and of compact ones for weights of dense layers where those are asked for."""
    total = 0
    for name, parameter in objective.named_parameters():
        name = name.removeprefix("encoder.")
        if not parameter.requires_grad:
            continue
        compact = has_compact_gradients(config, _processes()) and parameter.dim() > 1
        total += 4 * masks.count(name) if masks and compact else parameter.numel() * parameter.element_size()
    return total


def _state_bytes(objective: Objective, masks: Masks | None) -> int:
    if masks is None:
        return sum(_STATE_BYTES * p.numel() for p in objective.parameters() if p.requires_grad)
    return sum((_STATE_BYTES + _INDEX_BYTES) * masks.count(name) + masks.packed(name).numel() for name in masks)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _fitting(
    config: FinetuneConfig, limit: int, encoder: nn.Module, head: nn.Module, masks: Masks | None
) -> Iterator[str]:
    """The mildest change of each kind that fits: of how it is computed, then of what is trained."""
    plan = _planner(encoder, head, config, masks)

    def fits(*changes: Mapping[str, Any]) -> str | None:
        merged = {name: value for change in changes for name, value in change.items()}
        if plan(dataclasses.replace(config, **merged)).peak > limit:
            return None
        return " and ".join(f"{name}={str(value).lower()}" for name, value in merged.items())

    batches = [
        {"batch_size": config.batch_size // parts, "accumulation": config.accumulation * parts}
        for parts in range(2, config.batch_size + 1)
        if config.batch_size % parts == 0
    ]
    checkpointed = {"checkpoint_activations": True}
    smaller = next(filter(None, map(fits, batches)), None)
    alone = None if config.checkpoint_activations else fits(checkpointed)
    both = next(filter(None, (fits(checkpointed, batch) for batch in batches)), None)
    yield from filter(None, (alone, smaller) if alone or smaller else (both,))
    other: list[dict[str, Any]] = [{"clip_over": "selected"}]  # for masks: then no dense gradient is needed
    if RECIPES[config.recipe].kind != "masks":
        alike = linearized if RECIPES[config.recipe].linearized else str
        other = [{"recipe": alike(recipe)} for recipe in ("qkvo", "lora", "bitfit")]
    for change in other:
        if plan_finetune(encoder, head, dataclasses.replace(config, **change), masks).peak <= limit:
            ((name, value),) = change.items()
            yield f"{name}={value}"
            return
