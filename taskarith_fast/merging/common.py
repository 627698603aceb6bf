"""Checks that every merge method makes before any arithmetic: same keys, shapes and dtypes, finite values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.ops import count_nonfinite

State = Mapping[str, Tensor]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_compatible(base: State, finetuned: Sequence[State]) -> list[str]:
    """Check that the models can be merged and say which tensors take part.

    Args:
        base: The pre-trained model.
        finetuned: One or more fine-tuned models of the same architecture.

    Returns:
        The names of the floating tensors, sorted. All other tensors are equal in every model and are to be copied.

    Raises:
        ArgumentError: If `finetuned` is empty.
        CheckpointError: If keys, shapes or dtypes differ, a value is not finite, or integer tensors differ.
    """
    if not finetuned:
        raise ArgumentError("finetuned must hold at least one model, got none")
    for t, model in enumerate(finetuned):
        _check_keys(base, model, f"finetuned[{t}]")
    keys = []
    for name in sorted(base):
        tensors = [base[name], *(model[name] for model in finetuned)]
        _check_shapes(name, tensors)
        if tensors[0].is_floating_point():
            _check_floats(name, tensors)
            keys.append(name)
        else:
            _check_equal(name, tensors)
    return keys


def copied(base: State, keys: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of `base` that are not merged, cloned."""
    merged = set(keys)
    return {name: base[name].clone() for name in base if name not in merged}


def in_order_of(base: State, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`merged` in the key order of `base`; every key of the base is there, or this is a bug worth stopping for."""
    return {name: merged[name] for name in base}


def check_fraction(name: str, value: float) -> None:
    """Refuse a `value` outside (0, 1]; `name` is the argument's name."""
    if not 0.0 < value <= 1.0:
        raise ArgumentError(f"{name} must be in (0, 1], got {value}")


def per_task(name: str, value: float | Sequence[float], tasks: int) -> list[float]:
    """The argument `name`, one finite number or one a task, as T numbers; ArgumentError otherwise."""
    values = [float(value)] * tasks if isinstance(value, (int, float)) else [float(v) for v in value]
    if len(values) != tasks:
        raise ArgumentError(f"{name} must be one number or {tasks} (one a task), got {len(values)}")
    if not all(math.isfinite(v) for v in values):
        raise ArgumentError(f"{name} must be finite, got {value}")
    return values


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run a block on `count` of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_keys(base: State, model: State, label: str) -> None:
    missing, extra = sorted(base.keys() - model.keys()), sorted(model.keys() - base.keys())
    for kind, names in (("lacks", missing), ("has, unlike base,", extra)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(f"{label} {kind} {', '.join(names[:3])}{more}; all models must have the same tensors")


def _check_shapes(name: str, tensors: Sequence[Tensor]) -> None:
    first = tensors[0]
    for t, tensor in enumerate(tensors[1:]):
        if tensor.shape != first.shape:
            raise CheckpointError(
                f"{name}: shape must be {list(first.shape)} as in base, got {list(tensor.shape)} in finetuned[{t}]"
            )
        if tensor.dtype != first.dtype:
            raise CheckpointError(
                f"{name}: dtype must be {first.dtype} as in base, got {tensor.dtype} in finetuned[{t}]"
            )


def _check_floats(name: str, tensors: Sequence[Tensor]) -> None:
    if tensors[0].dtype not in _FLOATS:
        raise CheckpointError(
            f"{name}: dtype must be float32, bfloat16 or float16 to be merged, got {tensors[0].dtype}"
        )
    counts = count_nonfinite([tensor.detach() for tensor in tensors]).tolist()
    for t, tensor in enumerate(tensors):
        if not counts[t]:
            continue
        bad = ~torch.isfinite(tensor)
        where = list(torch.nonzero(bad)[0].tolist())
        label = "base" if t == 0 else f"finetuned[{t - 1}]"
        raise CheckpointError(
            f"{name}: every value must be finite, got {int(bad.sum())} NaN or Inf in {label}, the first at {where}"
        )


def _check_equal(name: str, tensors: Sequence[Tensor]) -> None:
    for t, tensor in enumerate(tensors[1:]):
        if not torch.equal(tensor, tensors[0]):
            raise CheckpointError(
                f"{name}: {tensor.dtype} tensors are copied and must equal base, finetuned[{t}] differs"
            )
