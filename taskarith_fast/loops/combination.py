"""What of a fine-tuning run does not go together."""

from __future__ import annotations

from pathlib import Path

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.distributed import World
from taskarith_fast.loops.recipes import RECIPES
from taskarith_fast.masks import Masks


def check_combination(config: FinetuneConfig, masks: Masks | None, checkpoint: Path | None, world: World) -> None:
    """Refuse a run whose parts do not go together.

    Raises:
        ArgumentError: For masks and a trained head; for snapshots of a run with a checkpoint; for steps in the backward
            pass of several processes; for sharding in one process, of a recipe that does not train whole tensors, or
            with a checkpoint.
    """
    if masks is not None and config.train_head:
        raise ArgumentError(
            "train_head must be false for recipes with masks, their heads are frozen; probe the task first"
        )
    if config.snapshots and checkpoint is not None:
        raise ArgumentError("snapshots must be empty for a run with a checkpoint, which does not hold them")
    if config.step_in_backward and world.size > 1:
        raise ArgumentError(f"step_in_backward needs one process, got {world.size}, whose gradients must be averaged")
    if config.sharding == "fsdp":
        _check_sharded(config, checkpoint, world)


def _check_sharded(config: FinetuneConfig, checkpoint: Path | None, world: World) -> None:
    if world.size == 1:
        raise ArgumentError("sharding 'fsdp' needs several processes, got one; start the run with torchrun")
    if RECIPES[config.recipe].kind != "tensors" or RECIPES[config.recipe].linearized:
        raise ArgumentError(
            f"sharding 'fsdp' needs a recipe that trains whole tensors, got {config.recipe!r}; try sharding 'none'"
        )
    if checkpoint is not None:
        raise ArgumentError("checkpoint must be None for sharding 'fsdp', which cannot resume yet; try sharding 'none'")
