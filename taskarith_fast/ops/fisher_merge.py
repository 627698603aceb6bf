r"""Average the tasks' weights, each by its Fisher information (Matena & Raffel 2022, eq. 4).

``out[i] = sum_t a_t F'_ti theta_ti / sum_t a_t F'_ti`` elementwise, with ``F' = max(F, floor)`` or, as MergeLM has
it, ``F + floor``; a_t = c_t / norm_t. Where F is 0 for every task of weight, ``sum_t c_t theta_ti`` with the c_t scaled
to add up to 1. 2 T reads and one write of every element; sums run over the tasks in order in float64 and are rounded
once to the storage type. Not differentiable: nothing here needs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import STORAGE_TYPES, check_lists, task_major

SCHEMA = "(Tensor[] finetuned, Tensor[] fishers, Tensor shares, Tensor factors, float floor, bool add) -> Tensor[]"


def fisher_merge_reference(
    finetuned: list[Tensor], fishers: list[Tensor], shares: Tensor, factors: Tensor, floor: float, add: bool
) -> list[Tensor]:
    """The formula in float64, tensor by tensor; both lists are task-major [T * L]."""
    length = len(finetuned) // len(shares)
    out = []
    for i in range(length):
        theta = [x.double() for x in finetuned[i::length]]
        needed, mass, total, mean = (torch.zeros_like(theta[0]) for _ in range(4))
        for x, fisher, share, factor in zip(theta, fishers[i::length], shares, factors, strict=True):
            f = fisher.double()
            raised = factor * (f + floor if add else f.clamp_min(floor))
            needed, mass, total, mean = needed + share * f, mass + raised, total + raised * x, mean + share * x
        out.append(torch.where(needed == 0, mean, total / mass).to(finetuned[i].dtype).contiguous())
    return out


def fisher_merge_fake(
    finetuned: list[Tensor], fishers: list[Tensor], shares: Tensor, factors: Tensor, floor: float, add: bool
) -> list[Tensor]:
    length = len(finetuned) // shares.shape[0]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in finetuned[:length]]


OP = define_op("fisher_merge", SCHEMA, fisher_merge_reference, fisher_merge_fake, triton=True)


def fisher_merge(
    finetuned: Sequence[Sequence[Tensor]],
    fishers: Sequence[Sequence[Tensor]],
    weights: Sequence[float],
    *,
    norms: Sequence[float] | None = None,
    floor: float = 1e-6,
    floor_rule: str = "max",
    backend: str = "auto",
) -> list[Tensor]:
    """Average lists of tensors, every element of every task by its Fisher information.

    Args:
        finetuned: T lists of L tensors of any shapes, float32, bfloat16 or float16.
        fishers: T lists of L tensors of the same shapes and device, each of any of these dtypes; finite and not
            negative, which is not checked here.
        weights: c_t, T numbers that are not negative and not all 0.
        norms: What to divide c_t by, T numbers above 0; None divides by nothing.
        floor: Least Fisher information, not negative.
        floor_rule: "max": the larger of the two; "add": their sum.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L new contiguous tensors like those of the first task, within one unit in the last place of the float64 result.

    Raises:
        ArgumentError: If lists, shapes or dtypes do not fit together, or a number is out of its domain.
        BackendError: If `backend` is absent.
    """
    shares, factors = check_weights(weights, norms, len(finetuned))
    if not (math.isfinite(floor) and floor >= 0):
        raise ArgumentError(f"floor must be finite and not negative, got {floor}")
    check_choice("floor_rule", floor_rule, ("max", "add"))
    first = list(finetuned[0])
    check_lists(first, finetuned)
    if len(fishers) != len(finetuned):
        raise ArgumentError(f"fishers must hold {len(finetuned)} lists (one a task), got {len(fishers)}")
    for t, task in enumerate(fishers):
        _check_fishers(first, task, f"fishers[{t}]")
    if not first:
        return []
    tables = (torch.tensor(x, dtype=torch.float64, device=first[0].device) for x in (shares, factors))
    return OP(task_major(finetuned), task_major(fishers), *tables, float(floor), floor_rule == "add", backend=backend)


def check_weights(
    weights: Sequence[float], norms: Sequence[float] | None, tasks: int
) -> tuple[list[float], list[float]]:
    """c_t scaled to add up to 1, and divided by the norms; ArgumentError if one is out of its domain."""
    for name, values in (("weights", weights), ("norms", norms)):
        if values is not None and (len(values) != tasks or not all(math.isfinite(v) and v >= 0 for v in values)):
            raise ArgumentError(f"{name} must be {tasks} finite numbers that are not negative, got {values}")
    if not any(weights):
        raise ArgumentError(f"weights must not all be 0, got {weights}")
    if norms is not None and not all(norms):
        raise ArgumentError(f"norms must be above 0, got {norms}")
    shares = [weight / math.fsum(weights) for weight in weights]
    return shares, [share / norm for share, norm in zip(shares, norms or [1.0] * tasks, strict=True)]


def _check_fishers(first: Sequence[Tensor], task: Sequence[Tensor], name: str) -> None:
    if len(task) != len(first):
        raise ArgumentError(f"{name} must hold {len(first)} tensors like finetuned[0], got {len(task)}")
    for i, (x, f) in enumerate(zip(first, task, strict=True)):
        if f.shape != x.shape or f.device != x.device or f.dtype not in STORAGE_TYPES:
            raise ArgumentError(
                f"{name}[{i}] must be float32, bfloat16 or float16 {list(x.shape)} on {x.device}, "
                f"got {f.dtype} {list(f.shape)} on {f.device}"
            )
