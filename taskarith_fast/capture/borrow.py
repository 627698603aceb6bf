"""Work on a user's model as if it were ours, and hand it back as it was, whatever happens in between."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taskarith_fast.models.blocks import transformer_blocks


@contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let `tensors` stand in the place of a model's parameters inside a with block.

    The parameters themselves, their values and flags, are not touched; ties between them hold for the stand-ins too.

    Args:
        model: Any module.
        tensors: Name in ``model.named_parameters()`` -> stand-in; other parameters stay.
    """
    stand_ins = {id(p): tensors[name] for name, p in model.named_parameters() if name in tensors}
    before = []
    try:
        for module in model.modules():
            for attribute, parameter in list(module._parameters.items()):
                if id(parameter) in stand_ins:
                    before.append((module, attribute, parameter))
                    # As torch.func.functional_call does it, but for longer than one call.
                    module._parameters[attribute] = stand_ins[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for module, attribute, parameter in before:
            module._parameters[attribute] = parameter


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a with block; each layer's own mode after it."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def recomputed_blocks(model: nn.Module, around: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Let a model keep only the inputs of its transformer blocks for the backward pass, inside a with block.

    Args:
        model: As transformer_blocks'.
        around: Makes the context in which a block is computed again.
    """
    blocks = transformer_blocks(model)
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = functools.partial(_recomputed, block.forward, around)  # type: ignore[method-assign]
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward  # type: ignore[method-assign]


def _recomputed(forward: Any, around: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), around()), **kwargs)
