"""Find the parameter that a tensor is, or is a piece of, by where its memory lies."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Places:
    """Where parameters lie. By memory, not by identity: a layer may use a view, such as weight.flatten(1)."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        lying = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
        self._whole = {(tensor.data_ptr(), tensor.numel()): name for name, tensor in lying.items()}
        self._spans = sorted((tensor.data_ptr(), _end(tensor), name) for name, tensor in lying.items())
        self.names = tuple(self._whole.values())

    def whole(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor holds entry for entry. A transposed or cut one begins at the same place."""
        return self._whole.get((tensor.data_ptr(), tensor.numel())) if tensor.is_contiguous() else None

    def owner(self, tensor: Tensor) -> str | None:
        """The parameter in whose memory a tensor begins."""
        if tensor.layout != torch.strided or not tensor.numel():
            return None
        at = tensor.data_ptr()
        i = bisect_right(self._spans, at, key=lambda span: span[0]) - 1
        return self._spans[i][2] if i >= 0 and at < self._spans[i][1] else None


def _end(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
