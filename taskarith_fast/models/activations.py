"""Bytes that a forward pass keeps for the backward pass, measured on one image and on two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.blocks import transformer_blocks
from taskarith_fast.ops.linear import linear_route
from taskarith_fast.tangent.pair import Pair


@dataclass(frozen=True)
class Kept:
    """What a forward pass keeps: bytes, as linear functions ``(fixed, per image)`` of the number of images."""

    whole: tuple[int, int]
    """All tensors."""
    outside: tuple[int, int]
    """Those not kept by a transformer block."""
    inputs: tuple[int, int]
    """The inputs of the blocks."""
    block: tuple[int, int]
    """Those of the block that keeps most."""
    largest: tuple[int, int]
    """The largest of them."""

    def bytes(self, images: int, checkpointed: bool) -> int:
        """Bytes kept at the end of a forward pass, or, checkpointed, while the largest block is computed again."""
        parts = (self.outside, self.inputs, self.block) if checkpointed else (self.whole,)
        return sum(fixed + images * each for fixed, each in parts)


def measure_kept(model: nn.Module, forward: Callable[[int], Any]) -> Kept:
    """Measure what a model keeps, without a backward pass.

    Args:
        model: What holds the parameters and blocks; parameters that need no gradient lessen what is kept.
        forward: Computes the loss of so many images.
    """
    one, two = _kept(model, lambda: forward(1)), _kept(model, lambda: forward(2))
    lines = {name: (max(0, 2 * one[name] - two[name]), two[name] - one[name]) for name in one}
    return Kept(**lines)


def _kept(model: nn.Module, forward: Callable[[], Any]) -> dict[str, int]:
    ledger = _Ledger(model)
    handles = []
    for number, block in enumerate(_blocks(model)):
        handles += [
            block.register_forward_pre_hook(lambda _, inputs, number=number: ledger.enter(number, inputs)),
            block.register_forward_hook(lambda *_: ledger.leave()),
        ]
    try:
        # One route, so that none is measured in here; the other one keeps the same.
        with linear_route("linear"), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(ledger.keep, _never):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return ledger.sums()


class _Ledger:
    """The storages that a forward pass keeps, each with the block that was the first to keep it."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._kept: dict[int, tuple[torch.UntypedStorage, int | None]] = {}
        self._inputs: dict[int, int] = {}
        self._block: int | None = None

    def enter(self, block: int, inputs: tuple[Any, ...]) -> None:
        self._block = block
        plain = [part for x in inputs for part in ((x.value, *x.tangents) if isinstance(x, Pair) else (x,))]
        self._inputs[block] = sum(x.untyped_storage().nbytes() for x in plain if isinstance(x, Tensor))

    def leave(self) -> None:
        self._block = None

    def keep(self, tensor: Tensor) -> None:
        """Count a tensor, and leave the graph without it: there is no backward pass."""
        # The storage is held, so that its address is not given to another one.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._kept.setdefault(storage.data_ptr(), (storage, self._block))

    def sums(self) -> dict[str, int]:
        sizes = [(storage.nbytes(), block) for storage, block in self._kept.values()]
        blocks = [sum(size for size, its in sizes if its == block) for block in self._inputs]
        return {
            "whole": sum(size for size, _ in sizes),
            "outside": sum(size for size, block in sizes if block is None),
            "inputs": sum(self._inputs.values()),
            "block": max(blocks, default=0),
            "largest": max((size for size, _ in sizes), default=0),
        }


def _never(_: Any) -> Tensor:
    raise AssertionError("what a forward pass keeps is measured without a backward pass")


def _blocks(model: nn.Module) -> list[nn.Module]:
    try:
        return transformer_blocks(model)
    except ArgumentError:  # an encoder of another kind: all it keeps is outside
        return []
