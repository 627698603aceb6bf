r"""Count ``|finetuned - base|`` into histograms, one a task: what finds an exact threshold in pieces.

Magnitudes are those of kth_magnitude: float32 deltas ordered by their bits, NaN on top. Task t has a
bracket ``low <= bits <= high``; its entries are counted in bin ``(bits - low) >> shift``, those above it in
the last column, those below it nowhere. With shift 0 a bin is one value, so the k-th largest can be read off
the counts, however large the model and in whatever pieces it came.

In place on `counts`; cost: one read of the base and of every task. Not differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import check_lists
from taskarith_fast.ops.kth_magnitude import NAN_MAGNITUDE, magnitude_bits

SCHEMA = "(Tensor(a!) counts, Tensor base, Tensor[] finetuned, int[] low, int[] high, int[] shift) -> ()"


def count_magnitudes_reference(
    counts: Tensor, base: Tensor, finetuned: list[Tensor], low: list[int], high: list[int], shift: list[int]
) -> None:
    """Task by task; `counts` is [T, bins + 1]."""
    for t, model in enumerate(finetuned):
        bits = magnitude_bits(model, base)
        inside = bits[(bits >= low[t]) & (bits <= high[t])]
        bins = (inside - low[t]).long() >> shift[t]
        counts[t].index_add_(0, bins, torch.ones_like(bins, dtype=counts.dtype))
        counts[t, -1] += (bits > high[t]).sum()


def count_magnitudes_fake(
    counts: Tensor, base: Tensor, finetuned: list[Tensor], low: list[int], high: list[int], shift: list[int]
) -> None:
    return None


OP = define_op("count_magnitudes_", SCHEMA, count_magnitudes_reference, count_magnitudes_fake, triton=True)


def count_magnitudes_(
    counts: Tensor,
    base: Tensor,
    finetuned: Sequence[Tensor],
    low: Sequence[int],
    high: Sequence[int],
    shift: Sequence[int],
    *,
    backend: str = "auto",
) -> Tensor:
    """Add the magnitudes of T task deltas to T histograms.

    Args:
        counts: Shape [T, bins + 1], int64, or int32 for fewer than 2^31 entries, contiguous; changed in place. The
            last column counts what is above.
        base: One tensor of any shape, float32, bfloat16 or float16.
        finetuned: T tensors like `base`.
        low: Magnitude bits of each bracket's lower end, between 0 and those of NaN (0x7F800001).
        high: Its upper end; it is in the bracket.
        shift: log2 of the values in a bin; ``(high - low) >> shift`` is less than `bins`.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        `counts`.

    Raises:
        ArgumentError: If shapes or dtypes do not fit together, or a bracket is out of its domain.
        BackendError: If `backend` is absent.
    """
    tasks, bins = len(finetuned), counts.shape[-1] - 1
    check_lists([base], [[model] for model in finetuned])
    kinds = (torch.int64, torch.int32)
    if counts.dim() != 2 or counts.shape[0] != tasks or bins < 1 or counts.dtype not in kinds:
        raise ArgumentError(
            f"counts must be int64 or int32 of shape [T={tasks}, bins + 1], got {counts.dtype} {list(counts.shape)}"
        )
    if not len(low) == len(high) == len(shift) == tasks:
        raise ArgumentError(
            f"low, high and shift must have T={tasks} entries, got {len(low)}, {len(high)}, {len(shift)}"
        )
    for t, (first, last, step) in enumerate(zip(low, high, shift, strict=True)):
        if not (0 <= first <= last <= NAN_MAGNITUDE and 0 <= step < 32 and (last - first) >> step < bins):
            raise ArgumentError(
                f"bracket {t} must lie in [0, {NAN_MAGNITUDE}] and in {bins} bins, got {first}..{last} >> {step}"
            )
    OP(counts, base, list(finetuned), list(low), list(high), list(shift), backend=backend)
    return counts
