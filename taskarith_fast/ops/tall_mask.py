r"""Localize what each task needs of a merged model, as packed bits (TALL masks, Wang 2024, eq. 5).

With ``tau_t = finetuned_t - base`` and ``tau_MT = sum_t tau_t``, entry j of task t is needed if
``|tau_t[j]| > lambda_t |tau_MT[j] - tau_t[j]|``. Everything is computed in float64 (the published code
subtracts float32 weights, and rounds the base in): T + 1 reads and T / 32 writes of every element. Where all
deltas are zero the masks are zero: the comparison is strict. A NaN is never needed.

On a GPU (CUDA C++) a thread computes a byte of every task's mask and reads the tasks a second time from the
caches.

Not differentiable: comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import check_lists, task_major
from taskarith_fast.ops.pack_bits import pack_reference

SCHEMA = "(Tensor[] base, Tensor[] finetuned, Tensor lambdas) -> Tensor[]"


def task_deltas(base: list[Tensor], finetuned: list[Tensor], i: int) -> Tensor:
    """All tasks' deltas of tensor i in float64, [T, *shape]; `finetuned` is task-major."""
    b = base[i].double()
    deltas = [f.double() - b for f in finetuned[i :: len(base)]]
    return torch.stack(deltas) if deltas else b.new_zeros(0, *b.shape)


def needed(deltas: Tensor, lambdas: Tensor) -> Tensor:
    """The masks themselves: bool [T, *shape] from float64 deltas [T, *shape] and lambdas [T]."""
    rest = total_delta(deltas) - deltas
    return deltas.abs() > lambdas.reshape(-1, *[1] * (deltas.dim() - 1)) * rest.abs()


def total_delta(deltas: Tensor) -> Tensor:
    """tau_MT: the sum over the tasks, in order."""
    total = deltas.new_zeros(deltas.shape[1:])
    for delta in deltas:
        total = total + delta
    return total


def tall_mask_reference(base: list[Tensor], finetuned: list[Tensor], lambdas: Tensor) -> list[Tensor]:
    """The comparison in float64, tensor by tensor, then packed."""
    masks = (needed(task_deltas(base, finetuned, i), lambdas) for i in range(len(base)))
    return [pack_reference(mask.reshape(mask.shape[0], b.numel())) for mask, b in zip(masks, base, strict=True)]


def tall_mask_fake(base: list[Tensor], finetuned: list[Tensor], lambdas: Tensor) -> list[Tensor]:
    return [b.new_empty((lambdas.shape[0], (b.numel() + 7) // 8), dtype=torch.uint8) for b in base]


OP = define_op("tall_mask", SCHEMA, tall_mask_reference, tall_mask_fake, triton=True)


def tall_mask(
    base: Sequence[Tensor],
    finetuned: Sequence[Sequence[Tensor]],
    lambdas: Tensor | Sequence[float],
    *,
    backend: str = "auto",
) -> list[Tensor]:
    """Give each task's mask over the sum of all task deltas.

    Args:
        base: L tensors of any shapes, float32, bfloat16 or float16.
        finetuned: T lists of L tensors, each with the shape, dtype and device of its base tensor.
        lambdas: One threshold a task, shape [T], nonnegative; larger ones keep less.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L tensors, shape [T, ceil(numel / 8)], uint8: bit ``j % 8`` of byte ``j // 8`` in row t is entry j
        (flattened) of task t; the bits after the last entry are zero. ``unpack_bits`` and ``where_bits`` read
        a row.

    Raises:
        ArgumentError: If lists, shapes or dtypes do not fit together, or a lambda is negative or not finite.
        BackendError: If `backend` is absent.
    """
    base = list(base)
    table = lambda_table(lambdas, base, len(finetuned))
    check_lists(base, finetuned)
    return OP(base, task_major(finetuned), table, backend=backend) if base else []


def lambda_table(lambdas: Tensor | Sequence[float], base: Sequence[Tensor], tasks: int) -> Tensor:
    """One finite threshold a task, float64 [T], on the device of `base`; ArgumentError otherwise."""
    table = torch.as_tensor(lambdas, dtype=torch.float64)
    if table.shape != (tasks,):
        raise ArgumentError(f"lambdas must have shape [T={tasks}], got {list(table.shape)}")
    if not bool(((table >= 0) & torch.isfinite(table)).all()):
        raise ArgumentError(f"lambdas must be finite and not negative, got {table.tolist()}")
    return table.to(base[0].device) if base else table
