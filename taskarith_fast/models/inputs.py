"""What models take: one tensor, or a dict of tensors that are named arguments; samples come first in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]
"""Images [B, ...], or a batch of texts, see ``models.language``."""


def run(model: Any, inputs: Inputs) -> Any:
    """Call a model: with the tensor, or with the dict's entries as named arguments."""
    return model(inputs) if isinstance(inputs, Tensor) else model(**inputs)


def count(inputs: Inputs) -> int:
    """Number of samples B."""
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def part(inputs: Inputs, index: slice | Tensor) -> Inputs:
    """Some of the samples: a slice, or their numbers."""
    return inputs[index] if isinstance(inputs, Tensor) else {name: x[index] for name, x in inputs.items()}


def moved(inputs: Inputs, device: str | torch.device) -> Inputs:
    """The samples on a device."""
    return inputs.to(device) if isinstance(inputs, Tensor) else {name: x.to(device) for name, x in inputs.items()}
