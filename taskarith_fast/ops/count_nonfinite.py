"""Count NaN and infinite values: one read of every tensor, at the speed of memory. Not differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import STORAGE_TYPES

SCHEMA = "(Tensor[] tensors) -> Tensor"


def count_nonfinite_reference(tensors: list[Tensor]) -> Tensor:
    """Counts, shape [L], int64."""
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    return torch.stack([(~torch.isfinite(x)).sum() for x in tensors])


def count_nonfinite_fake(tensors: list[Tensor]) -> Tensor:
    like = tensors[0] if tensors else torch.empty(0)
    return like.new_empty(len(tensors), dtype=torch.int64)


OP = define_op("count_nonfinite", SCHEMA, count_nonfinite_reference, count_nonfinite_fake, triton=True)


def count_nonfinite(tensors: Sequence[Tensor], *, backend: str = "auto") -> Tensor:
    """Count NaN and infinite values.

    Args:
        tensors: L tensors of any shapes, float32, bfloat16 or float16.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        Shape [L], int64: how many of each tensor's values are not finite.

    Raises:
        ArgumentError: If a tensor has another dtype.
        BackendError: If `backend` is absent.
    """
    for i, x in enumerate(tensors):
        if x.dtype not in STORAGE_TYPES:
            raise ArgumentError(f"tensors[{i}] must be float32, bfloat16 or float16, got {x.dtype}")
    return OP(list(tensors), backend=backend)
