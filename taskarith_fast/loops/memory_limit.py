"""Refusing a fine-tuning run that needs more memory than there is, with what would fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.memory_plan import MemoryPlan, planner
from taskarith_fast.loops.recipes import RECIPES, linearized
from taskarith_fast.merging.checks import format_size


def check_memory(plan: MemoryPlan, limit: int) -> None:
    """Refuse a run that needs more than `limit` bytes, naming changes with which it would fit.

    Raises:
        ArgumentError: If it does not fit.
    """
    if plan.peak <= limit:
        return
    fitting = list(_fitting(plan, limit))
    hint = "it would fit with " + "; or ".join(fitting) if fitting else "no smaller batch or recipe fits either"
    raise ArgumentError(
        f"max_memory must be at least {format_size(plan.peak)} for this run, got {format_size(limit)}; {hint}"
    )


def _fitting(plan: MemoryPlan, limit: int) -> Iterator[str]:
    """The mildest change of each kind that fits: of how it is computed, then of what is trained."""
    trained, config = plan.trained, plan.config
    planned = planner(trained, config)

    def fits(*changes: Mapping[str, Any]) -> str | None:
        merged = {name: value for change in changes for name, value in change.items()}
        if planned(dataclasses.replace(config, **merged)).peak > limit:
            return None
        return " and ".join(f"{name}={str(value).lower()}" for name, value in merged.items())

    batches = [
        {"batch_size": config.batch_size // parts, "accumulation": config.accumulation * parts}
        for parts in range(2, config.batch_size + 1)
        if config.batch_size % parts == 0 and not config.step_in_backward
    ]
    checkpointed = {"checkpoint_activations": True}
    smaller = next(filter(None, map(fits, batches)), None)
    alone = None if config.checkpoint_activations else fits(checkpointed)
    both = next(filter(None, (fits(checkpointed, batch) for batch in batches)), None)
    yield from filter(None, (alone, smaller) if alone or smaller else (both,))
    for change in _milder(config):
        other = dataclasses.replace(config, **change)
        if planner(trained, other)(other).peak <= limit:
            yield " and ".join(f"{name}={str(value).lower()}" for name, value in change.items())
            return


def _milder(config: FinetuneConfig) -> list[dict[str, Any]]:
    """Changes of what is trained, or, for masks, of how gradients are held, mildest first."""
    recipe = RECIPES[config.recipe]
    if recipe.kind != "masks":
        alike = linearized if recipe.linearized else str
        return [{"recipe": alike(recipe)} for recipe in ("qkvo", "lora", "bitfit")]
    selected: list[dict[str, Any]] = [{"clip_over": "selected"}]  # then no dense gradient is needed
    if recipe.linearized or config.accumulation > 1:
        return selected
    return [*selected, {"clip": None, "step_in_backward": True}]
