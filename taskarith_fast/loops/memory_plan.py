"""What a fine-tuning run needs in memory, said before it starts.

    peak = weights + optimizer state + max(activations of one pass, gradients) + what a pass works with

Gradients grow while activations shrink, so the larger of the two counts, and both where passes are accumulated.
Stepped in the backward pass, gradients are one at a time. Weights, gradients and state follow from shapes and masks;
what the forward pass keeps is measured on one image or text and on two.
The data themselves and what torch needs to be loaded come on top.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from taskarith_fast.inputs import Inputs, joined, moved
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.objective import Objective
from taskarith_fast.loops.recipes import RECIPES, has_compact_gradients, prepare, surroundings
from taskarith_fast.loops.runtime import device_of, resolve_device
from taskarith_fast.masks import Masks
from taskarith_fast.merging.checks import format_size
from taskarith_fast.models.activations import Kept, measure_kept
from taskarith_fast.ops.selection import Selection

_STATE_BYTES = 8  # AdamW's two moments in float32
# Of a text, and of its answers, where nothing else is known.
_TOKENS, _ANSWERS = 128, (2, 4)
# Gradients of activations that are alive at once where they are largest: of an MLP's hidden layer, before and after
# its nonlinearity. Linearized, their tangents are there too.
_WORKING_COPIES, _WITH_TANGENTS = 2, 4


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run trains."""

    encoder: nn.Module
    """Maps images or texts to features, or scores answers; not changed by a plan, and not copied for it."""
    head: nn.Module
    """Maps features to logits."""
    masks: Masks | None = None
    """As `finetune`'s."""
    sample: Inputs | None = None
    """A batch of one sample of the greatest size; None takes an image of the encoder's, or a text as long as its
    tokenizer's limit, of 128 tokens where it has none."""
    in_place: bool = False
    """As `finetune`'s."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run needs on the device it runs on, in each process."""

    config: FinetuneConfig
    """The run."""
    trained: Trained
    """What it trains."""
    weights: int
    """The model that is trained, its heads, and the encoder it is a copy of where that is on the same device."""
    gradients: int
    optimizer: int
    """State of the optimizer, masks and indices of masked entries."""
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
        kind = "texts" if _reads_texts(self.trained) else "images"
        images = f"{self.config.batch_size} {kind} a pass"
        return [
            f"recipe {self.config.recipe}, {images}, {self.config.accumulation} passes a step",
            *(f"{part:12s} {format_size(getattr(self, part)):>10s}" for part in parts),
            f"{'peak':12s} {format_size(self.peak):>10s}",
        ]


def plan_finetune(
    encoder: nn.Module,
    head: nn.Module | None,
    config: FinetuneConfig | None = None,
    masks: Masks | None = None,
    *,
    sample: Inputs | None = None,
    in_place: bool = False,
) -> MemoryPlan:
    """Say what a fine-tuning run would need.

    Args:
        encoder, head, masks, in_place: As `finetune`'s; not changed.
        config: None for the papers'.
        sample: As `Trained`'s.

    Raises:
        ArgumentError: As `recipes.prepare`.
    """
    config = config or FinetuneConfig()
    return planner(Trained(encoder, nn.Identity() if head is None else head, masks, sample, in_place), config)(config)


def planner(trained: Trained, config: FinetuneConfig) -> Callable[[FinetuneConfig], MemoryPlan]:
    """Measure a recipe once; the plans for its batch sizes, and with checkpointing, follow."""
    classifier = copy.deepcopy(trained.head).requires_grad_(config.train_head)
    model = _same_weights(trained.encoder).train()
    prepared = prepare(model, dataclasses.replace(config, checkpoint_activations=False), trained.masks)
    objective = Objective(prepared.encoder, [classifier], prepared.adapter, config)
    device = device_of(objective)
    sample = moved(_sample(trained, config), device)

    def forward(images: int) -> torch.Tensor:
        labels = torch.zeros(images, dtype=torch.long, device=device)
        return objective([(joined([sample] * images), labels, 1.0)])

    with torch.random.fork_rng(devices=[]), surroundings(prepared, config, trained.masks, _processes()):
        kept = measure_kept(objective, forward)
    state = _state_bytes(objective, trained.masks)
    return lambda config: _plan(trained, objective, config, kept, state)


def _same_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters are others in the same memory, for passes that change nothing."""
    memo = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _reads_texts(trained: Trained) -> bool:
    return hasattr(trained.encoder, "tokenizer") or isinstance(trained.sample, Mapping)


def _sample(trained: Trained, config: FinetuneConfig) -> Inputs:
    if trained.sample is not None:
        return trained.sample
    encoder: Any = trained.encoder
    if not _reads_texts(trained):
        size = config.image_size or encoder.image_size
        return torch.zeros(1, 3, size, size)
    ids = torch.zeros(1, encoder.tokenizer.max_length or _TOKENS, dtype=torch.long)
    answers = {"answers": torch.zeros(1, *_ANSWERS, dtype=torch.long)} if encoder.tokenizer.answers else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | answers


def _plan(trained: Trained, objective: Objective, config: FinetuneConfig, kept: Kept, state: int) -> MemoryPlan:
    processes = _processes()
    images = -(-config.batch_size // processes)
    shards = processes if config.sharding == "fsdp" else 1
    linear = RECIPES[config.recipe].linearized
    copies = _WITH_TANGENTS if linear else _WORKING_COPIES
    weights = _bytes(objective) // shards
    if (linear or not trained.in_place) and resolve_device(config.device).type == device_of(trained.encoder).type:
        weights += _bytes(trained.encoder)
    gradients = _gradient_bytes(objective, config, trained.masks)
    return MemoryPlan(
        config,
        trained,
        weights=weights,
        gradients=(max(gradients, default=0) if config.step_in_backward else sum(gradients)) // shards,
        optimizer=state // shards,
        activations=kept.bytes(images, config.checkpoint_activations),
        working=copies * (kept.largest[0] + images * kept.largest[1]),
    )


def _gradient_bytes(objective: Objective, config: FinetuneConfig, masks: Masks | None) -> list[int]:
    """Of each dense gradient, and of compact ones for weights of dense layers where those are asked for.

    A tied tensor counts twice: while the gradients of two of its uses are added, both are there.
    """
    sizes, uses = [], Counter(id(p) for _, p in objective.named_parameters(remove_duplicate=False))
    for name, parameter in objective.named_parameters():
        name = name.removeprefix("encoder.")
        if not parameter.requires_grad:
            continue
        compact = has_compact_gradients(config, _processes()) and parameter.dim() > 1
        size = 4 * masks.count(name) if masks and compact else parameter.numel() * parameter.element_size()
        sizes += [size] * (2 if uses[id(parameter)] > 1 else 1)
    return sizes


def _state_bytes(objective: Objective, masks: Masks | None) -> int:
    if masks is None:
        return sum(_STATE_BYTES * p.numel() for p in objective.parameters() if p.requires_grad)
    return sum(_STATE_BYTES * masks.count(n) + Selection.of(masks[n]).nbytes + masks.packed(n).numel() for n in masks)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
