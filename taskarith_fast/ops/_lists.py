"""What the operators over (base, tasks) lists of tensors have in common: checks, layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError

STORAGE_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_lists(base: Sequence[Tensor], finetuned: Sequence[Sequence[Tensor]]) -> None:
    """Check that every task's list fits `base`, tensor by tensor.

    Raises:
        ArgumentError: If a length, shape, dtype or device differs, or a dtype is no storage type.
    """
    layout = _layout(base)
    for t, task in enumerate(finetuned):
        if _layout(task) != layout:
            check_like(base, task, f"finetuned[{t}]")
    for i, b in enumerate(base):
        if b.dtype not in STORAGE_TYPES:
            raise ArgumentError(f"base[{i}] must be float32, bfloat16 or float16, got {b.dtype}")


def _layout(tensors: Sequence[Tensor]) -> tuple[list[torch.Size], list[torch.dtype], list[torch.device]]:
    """What has to be equal, list by list: comparing whole lists costs a third of comparing tensor by tensor."""
    return [x.shape for x in tensors], [x.dtype for x in tensors], [x.device for x in tensors]


def check_like(base: Sequence[Tensor], other: Sequence[Tensor], name: str) -> None:
    """Check that `other`, called `name`, has the shapes, dtypes and devices of `base`.

    Raises:
        ArgumentError: If it has not.
    """
    if len(other) != len(base):
        raise ArgumentError(f"{name} must hold {len(base)} tensors like base, got {len(other)}")
    for i, (b, f) in enumerate(zip(base, other, strict=True)):
        if f.shape != b.shape or f.dtype != b.dtype or f.device != b.device:
            raise ArgumentError(
                f"{name}[{i}] must be {b.dtype} {list(b.shape)} on {b.device} like base, "
                f"got {f.dtype} {list(f.shape)} on {f.device}"
            )


def task_major(finetuned: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The T lists of L tensors one after the other, [T * L]."""
    return [f for task in finetuned for f in task]


def weight_table(weights: Tensor | Sequence[float], base: Sequence[Tensor], tasks: int) -> Tensor:
    """Weights, shape [T] or [T, L], as a contiguous float64 table [T, L] on the device of `base`.

    Raises:
        ArgumentError: If the shape is neither.
    """
    length = len(base)
    if not isinstance(weights, Tensor):
        weights = torch.tensor(list(weights), dtype=torch.float64)
    if weights.shape not in ((tasks,), (tasks, length)):
        raise ArgumentError(
            f"weights must have shape [T={tasks}] or [T={tasks}, L={length}], got {list(weights.shape)}"
        )
    if base:
        weights = weights.to(base[0].device)
    if not tasks or not length:
        return weights.new_zeros(tasks, length, dtype=torch.float64)
    return weights.double().reshape(tasks, -1).expand(tasks, length)
