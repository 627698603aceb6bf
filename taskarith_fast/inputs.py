"""What a model takes: one tensor of images, or a dict of tensors such as the token ids and mask of texts.

Both are batch first. A model is called as ``model(images)`` or ``model(**texts)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]

# What is put behind the end of a shorter text; the model does not look there.
_PADDING = {"answers": -100}


def call(model: Any, inputs: Inputs) -> Any:
    """Run a model on a batch."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def count(inputs: Inputs) -> int:
    """Samples of a batch."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)


def rows(inputs: Inputs, part: slice) -> Inputs:
    """Some samples of a batch."""
    return {name: t[part] for name, t in inputs.items()} if isinstance(inputs, Mapping) else inputs[part]


def moved(inputs: Inputs, device: str | torch.device) -> Inputs:
    """The batch on a device."""
    return {name: t.to(device) for name, t in inputs.items()} if isinstance(inputs, Mapping) else inputs.to(device)


def joined(batches: Sequence[Inputs]) -> Inputs:
    """One batch of several; texts are padded to the longest.

    >>> joined([{"input_ids": torch.ones(1, 2)}, {"input_ids": torch.ones(1, 3)}])["input_ids"].tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if isinstance(batches[0], Mapping):
        return {name: _joined([batch[name] for batch in batches], _PADDING.get(name, 0)) for name in batches[0]}  # type: ignore[index]
    return torch.cat(list(batches))  # type: ignore[arg-type]


def _joined(tensors: Sequence[Tensor], padding: int) -> Tensor:
    shape = [sum(len(t) for t in tensors), *(max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True))]
    whole, start = torch.full(shape, padding, dtype=tensors[0].dtype, device=tensors[0].device), 0
    for tensor in tensors:
        whole[(slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
        start += len(tensor)
    return whole
