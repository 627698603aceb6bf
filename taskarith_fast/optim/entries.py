"""What an optimizer keeps about each parameter beside torch's state: its name, what is selected, how it is rounded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.masks import Masks
from taskarith_fast.ops._lists import STORAGE_TYPES
from taskarith_fast.ops.dare import stream
from taskarith_fast.ops.selection import Selection


@dataclass(frozen=True)
class Entry:
    """One parameter.

    name: Its name in the masks.
    selection: Its selected entries.
    digest: Of its mask; a state of another mask does not fit.
    master: Whether compact float32 weights are what is updated.
    stream: Key of the random rounding; None: round to nearest.
    """

    name: str
    selection: Selection
    digest: str
    master: bool
    stream: int | None


@dataclass
class Batch:
    """Parameters that take one call of a step operator together: L of each, in order.

    lists: What the operators take between states and scalars: masters, items, offsets, streams.
    """

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    lists: tuple[list[Any], ...] = field(default_factory=lambda: ([], [], [], []))

    def add(self, parameter: Tensor, grad: Tensor, state: dict[str, Tensor], entry: Entry) -> None:
        """Add a parameter."""
        self.params.append(parameter)
        self.grads.append(grad)
        self.states.append(state)
        masters, items, offsets, streams = self.lists
        items.append(entry.selection.items)
        offsets.append(entry.selection.offsets)
        if entry.master:
            masters.append(state["master"])
        if entry.stream is not None:
            streams.append(entry.stream)

    def state(self, name: str) -> list[Tensor]:
        """One state of every parameter, [count] each, or the "step"."""
        return [state[name] for state in self.states]


@dataclass(frozen=True)
class Precision:
    """How parameters below float32 are updated.

    master_weights: Keep compact float32 copies; None: unless they are rounded at random.
    stochastic_rounding: Round up or down so that the expectation is exact.
    seed: Of the random rounding.
    """

    master_weights: bool | None
    stochastic_rounding: bool
    seed: int

    def __post_init__(self) -> None:
        if self.master_weights and self.stochastic_rounding:
            raise ArgumentError("master_weights and stochastic_rounding exclude each other; choose one")

    def entry(self, name: str, parameter: Tensor, masks: Masks) -> Entry:
        """The entry of one parameter with its mask."""
        low = parameter.dtype != torch.float32
        at_random = low and self.stochastic_rounding
        master = low and not at_random and self.master_weights is not False
        key = stream(self.seed, 0, name) if at_random else None
        return Entry(name, Selection.of(masks[name].to(parameter.device)), masks.digest(name), master, key)


def trained(named: Iterable[Any], masks: Masks) -> list[tuple[str, Tensor]]:
    """The parameters that `masks` names, checked; others must not require a gradient.

    Raises:
        ArgumentError: If a parameter has no name or no mask, or is of a kind that cannot be trained so.
    """
    kept = []
    for item in named:
        if not isinstance(item, tuple) or len(item) != 2:
            raise ArgumentError("parameters must be (name, parameter) pairs; pass model.named_parameters()")
        name, parameter = item
        if name not in masks:
            if parameter.requires_grad:
                raise ArgumentError(f"{name} requires a gradient but has no mask; freeze it or add a mask")
            continue
        if masks.shape(name) != tuple(parameter.shape):
            expected, got = list(parameter.shape), list(masks.shape(name))
            raise ArgumentError(f"{name}: the mask must have shape {expected} like the parameter, got {got}")
        _check_kind(name, parameter)
        kept.append((name, parameter))
    if not kept:
        raise ArgumentError("a group must hold a parameter that has a mask, got none")
    return kept


def _check_kind(name: str, parameter: Tensor) -> None:
    if type(parameter).__module__.startswith("torch.distributed"):
        raise ArgumentError(f"{name} is a DTensor, which sparse optimizers cannot step; use DDP, or shard the masks")
    if parameter.dtype not in STORAGE_TYPES:
        raise ArgumentError(f"{name} must be float32, bfloat16 or float16, got {parameter.dtype}")
    if not parameter.is_contiguous():
        raise ArgumentError(f"{name} must be contiguous; store it so before the optimizer is made")
