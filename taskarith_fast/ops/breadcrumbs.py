r"""Add the middle of every row of the task deltas to the base (Model Breadcrumbs, Davari 2024, section 3).

``out[i] = base[i] + sum_t w[t, i] m[t, i] (finetuned[t, i] - base[i])`` with masks m that, in each row along
the last dimension, drop the `removed` entries of the largest magnitude and keep the next `kept` ones. Both
counts are exact: of equal magnitudes the entry with the lower position ranks higher, so it is removed first
and kept first. Magnitudes are those of the float32 deltas, NaN above infinity; sums run over the tasks in
order in float64 and are rounded once. A whole tensor counts as one row when it is given as such.

The kernel finds both thresholds of a row by counting, in cache, and keeps masks as bits: T + 1 reads and one
write of every element (rows longer than the caches are read twice), extra memory of 4 bytes an entry of a row
and thread.

On a GPU a block takes a row: a radix select of 11, 10 and 10 bits in shared memory for either threshold, which finds
the row in the caches after the first pass; at most 4096 tasks. Rows of few entries leave most threads idle. Triton
merges in a launch of its own, and unrolls the tasks. GPU times are unmeasured.

Not differentiable: the masks are steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import check_lists, task_major, weight_table
from taskarith_fast.ops.kth_magnitude import magnitude_bits

SCHEMA = "(Tensor[] base, Tensor[] finetuned, Tensor weights, int[] removed, int[] kept) -> Tensor[]"


def row_size(x: Tensor) -> int:
    """Entries of the last dimension; a 0-d tensor is one row of one."""
    return x.shape[-1] if x.dim() else 1


def band_mask(finetuned: Tensor, base: Tensor, removed: int, kept: int) -> Tensor:
    """The entries of rank [removed, removed + kept) in their row, bool in the shape of `base`."""
    bits = magnitude_bits(finetuned, base).reshape(-1, max(row_size(base), 1))
    order = bits.sort(dim=1, descending=True, stable=True).indices[:, removed : removed + kept]
    return torch.zeros_like(bits, dtype=torch.bool).scatter_(1, order, True).reshape(base.shape)


def breadcrumbs_reference(
    base: list[Tensor], finetuned: list[Tensor], weights: Tensor, removed: list[int], kept: list[int]
) -> list[Tensor]:
    """Sort every row, add in float64; `finetuned` is task-major [T * L], `weights` [T, L]."""
    out = []
    for i, b in enumerate(base):
        total = b.double().clone()
        for t in range(weights.shape[0]):
            f = finetuned[t * len(base) + i]
            mask = band_mask(f, b, removed[i], kept[i])
            total = total + weights[t, i] * torch.where(mask, f.double() - b.double(), 0.0)
        out.append(total.to(b.dtype).contiguous())
    return out


def breadcrumbs_fake(
    base: list[Tensor], finetuned: list[Tensor], weights: Tensor, removed: list[int], kept: list[int]
) -> list[Tensor]:
    return [torch.empty_like(b, memory_format=torch.contiguous_format) for b in base]


OP = define_op("breadcrumbs", SCHEMA, breadcrumbs_reference, breadcrumbs_fake, triton=True)


def breadcrumbs(
    base: Sequence[Tensor],
    finetuned: Sequence[Sequence[Tensor]],
    weights: Tensor | Sequence[float],
    removed: Sequence[int],
    kept: Sequence[int],
    *,
    backend: str = "auto",
) -> list[Tensor]:
    """Add weighted task deltas to the base after dropping each row's largest and smallest entries.

    Args:
        base: L tensors of any shapes, float32, bfloat16 or float16; rows run along the last dimension.
        finetuned: T lists of L tensors, each with the shape, dtype and device of its base tensor.
        weights: One weight a task, shape [T], or one a task and tensor, shape [T, L].
        removed: How many of the largest entries of a row to drop, one number a tensor.
        kept: How many of the next largest to keep; removed + kept at most the row's size.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L new contiguous tensors like `base`, within one unit in the last place of the float64 result.

    Raises:
        ArgumentError: If lists, shapes or dtypes do not fit together, or a count is out of its domain.
        BackendError: If `backend` is absent.
    """
    base, tasks = list(base), len(finetuned)
    weights = weight_table(weights, base, tasks)
    check_lists(base, finetuned)
    if len(removed) != len(base) or len(kept) != len(base):
        raise ArgumentError(f"removed and kept must hold {len(base)} counts, got {len(removed)} and {len(kept)}")
    for i, (b, r, k) in enumerate(zip(base, removed, kept, strict=True)):
        if r < 0 or k < 0 or r + k > row_size(b):
            raise ArgumentError(
                f"removed[{i}] + kept[{i}] must be in [0, {row_size(b)}], the row's size; got {r} + {k}"
            )
    return OP(base, task_major(finetuned), weights, list(removed), list(kept), backend=backend) if base else []
