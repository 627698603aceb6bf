"""The transformer blocks of an encoder, and activation checkpointing around each of them."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from taskarith_fast.errors import ArgumentError

# The names that containers of blocks have: ours and open_clip; timm; transformers; T5.
_CONTAINERS = ("resblocks", "blocks", "layer", "layers", "block")


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model of ours, open_clip, timm or transformers, first to last, of all its stacks.

    Raises:
        ArgumentError: If the model has no container of blocks under a name of those libraries.
    """
    stacks: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{stack}.") for stack in stacks)
        is_list = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 0
        if is_list and not inside and name.rpartition(".")[2] in _CONTAINERS:
            stacks[name] = list(module.children())
    if stacks:
        return [block for stack in stacks.values() for block in stack]
    raise ArgumentError(f"model must hold its blocks in a list named {', '.join(_CONTAINERS)}, got none")


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the inputs of the blocks in the forward pass, and compute each block again in the backward pass.

    In place, until the model is thrown away: it is meant for a copy. Gradients are the same bit for bit where
    the forward pass is deterministic.

    Args:
        model: As transformer_blocks'.

    Raises:
        ArgumentError: As transformer_blocks.
    """
    for block in transformer_blocks(model):
        block.forward = functools.partial(_recomputed, block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
