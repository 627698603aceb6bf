r"""Sum the tasks' truncated deltas: ``out[i] = sum_t SVD_r(finetuned[t, i] - base[i])`` over a list of
matrices.

This is CART's sum, with the average of the models as base (Choi et al. 2024, eq. 5). Every delta is formed
once, in float32, and decomposed as `truncated_svd` does; the T products are then one, ``[U_1 S_1 .. U_T S_T]
[Vh_1; ..; Vh_T]``, with the T r columns as its inner dimension: 2 m n T r FLOPs. Factors of at most 64
decompositions are held at a time.

Not differentiable (see `truncated_svd`). Each decomposition and each block of columns is computed by one
thread, so results do not depend on the thread count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops.truncated_svd import check_method, check_rank, dense_factors, refuse_gradient

GROUP = 64
Factors = Callable[[list[tuple[Tensor, list[Tensor]]], int], tuple[Tensor, Tensor, Tensor]]

SCHEMA = "(Tensor[] base, Tensor[] finetuned, int[] rank, str svd) -> Tensor[]"


def lowrank_sum_reference(base: list[Tensor], finetuned: list[Tensor], rank: list[int], svd: str) -> list[Tensor]:
    """LAPACK's decompositions in float64, cut off and summed; `finetuned` is task-major [T * L]."""
    out = []
    for i, b in enumerate(base):
        total = torch.zeros_like(b, dtype=torch.float64)
        for f in finetuned[i :: len(base)]:
            u, s, vh = torch.linalg.svd(f.double() - b.double(), full_matrices=False)
            total += (u[:, : rank[i]] * s[: rank[i]]) @ vh[: rank[i]]
        out.append(total.to(b.dtype).contiguous())
    return out


def lowrank_sum_composed(base: list[Tensor], finetuned: list[Tensor], rank: list[int], svd: str) -> list[Tensor]:
    """For GPUs, by torch's products."""

    def factors(part: list[tuple[Tensor, list[Tensor]]], r: int) -> tuple[Tensor, Tensor, Tensor]:
        return dense_factors(torch.stack([f.double() - b.double() for b, models in part for f in models]), r)

    return sum_in_groups(base, finetuned, rank, factors)


def sum_in_groups(base: list[Tensor], finetuned: list[Tensor], rank: list[int], factors: Factors) -> list[Tensor]:
    """Decompositions in batches of all tasks of matrices of one shape and rank; one product a matrix.

    Args:
        base, finetuned, rank: The op's own, `finetuned` task-major [T * L].
        factors: From (base, its T models) of some matrices and r to U [matrices * T, m, r], S and Vh.
    """
    out = [torch.zeros_like(b, memory_format=torch.contiguous_format) for b in base]
    tasks = len(finetuned) // max(len(base), 1)
    alike: dict[tuple[torch.Size, int], list[int]] = defaultdict(list)
    for i, b in enumerate(base):
        alike[b.shape, rank[i]].append(i)
    step = max(1, GROUP // max(tasks, 1))
    parts = [part[j : j + step] for part in alike.values() for j in range(0, len(part), step)]
    for part in parts if tasks else ():
        u, s, vh = factors([(base[i], finetuned[i :: len(base)]) for i in part], rank[part[0]])
        left = (u * s[:, None]).unflatten(0, (-1, tasks)).transpose(1, 2).flatten(2)  # [part, m, T r]
        for i, total in zip(part, left @ vh.unflatten(0, (-1, tasks)).flatten(1, 2), strict=True):
            out[i].copy_(total)
    return out


def lowrank_sum_fake(base: list[Tensor], finetuned: list[Tensor], rank: list[int], svd: str) -> list[Tensor]:
    return [torch.empty_like(b, memory_format=torch.contiguous_format) for b in base]


OP = define_op(
    "lowrank_sum", SCHEMA, lowrank_sum_reference, lowrank_sum_fake, triton=True, composed=lowrank_sum_composed
)


def lowrank_sum(
    base: Sequence[Tensor],
    finetuned: Sequence[Sequence[Tensor]],
    rank: int | Sequence[int],
    *,
    svd: str = "certified",
    backend: str = "auto",
) -> list[Tensor]:
    """Sum the rank-r parts of the task deltas, matrix by matrix.

    Args:
        base: L matrices of any shapes, float32, bfloat16 or float16.
        finetuned: T lists of L matrices, each with the shape, dtype and device of its base matrix, finite.
        rank: r for all matrices, or one for each, shape [L], between 1 and min(m, n).
        svd: "certified" or "exact", as in `truncated_svd`.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L new contiguous matrices like `base`; zeros if there is no task.

    Raises:
        ArgumentError: If lists, shapes, dtypes or ranks do not fit together, or a gradient is asked for.
        BackendError: If `backend` is absent.
        RuntimeError: If a delta holds NaN or Inf.
    """
    base = list(base)
    ranks = [rank] * len(base) if isinstance(rank, int) else [int(r) for r in rank]
    check_method(svd)
    if len(ranks) != len(base):
        raise ArgumentError(f"rank must be one number or {len(base)} (one a matrix), got {len(ranks)}")
    for i, b in enumerate(base):
        if b.dim() != 2 or b.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ArgumentError(
                f"base[{i}] must be a float32, bfloat16 or float16 matrix, got {b.dtype} {list(b.shape)}"
            )
        check_rank(f"rank[{i}]", ranks[i], b.shape)
    for t, task in enumerate(finetuned):
        _check_task(base, task, f"finetuned[{t}]")
    flat = [f for task in finetuned for f in task]
    refuse_gradient("lowrank_sum", *base, *flat)
    return OP(base, flat, ranks, svd, backend=backend) if base else []


def _check_task(base: list[Tensor], task: Sequence[Tensor], name: str) -> None:
    if len(task) != len(base):
        raise ArgumentError(f"{name} must hold {len(base)} matrices like base, got {len(task)}")
    for i, (b, f) in enumerate(zip(base, task, strict=True)):
        if f.shape != b.shape or f.dtype != b.dtype or f.device != b.device:
            raise ArgumentError(
                f"{name}[{i}] must be {b.dtype} {list(b.shape)} on {b.device} like base, "
                f"got {f.dtype} {list(f.shape)} on {f.device}"
            )
