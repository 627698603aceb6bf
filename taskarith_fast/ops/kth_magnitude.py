r"""Find the exact k-th largest ``|finetuned - base|``: the threshold of TIES (Yadav 2023, section 4).

Deltas are float32 (exact upcast of the storage type, one rounding of the difference) and are ordered by
magnitude with NaN above infinity, so the k-th one is always defined. A *segment* is where one threshold
holds: all tensors in list order, flattened ("global"), one tensor ("tensor"), or one row along the last
dimension ("row"). Many entries may equal the threshold; the *cutoff* is the position in the segment
(flattened, from 0) before which they belong to the k: entry j is among them exactly if ``|d_j| >
threshold`` or ``|d_j| == threshold and j < cutoff``. It is the segment's size where no tie has to be
dropped. k = 0 gives (infinity, 0).

Cost: one read of the base and of every task. A sample of 2^18 entries brackets the threshold; the scan
counts what is outside the bracket and keeps the 0.8 % inside; an unlucky bracket costs three histogram
passes more. Nothing is concatenated or materialised; ties at the bracket's ends are counted, not stored,
and the extra memory stays under an eighth of the deltas.

On a GPU (CUDA C++) there is no bracket: three passes count digits of 11, 10 and 10 bits, a block a segment
and task narrows the threshold after each, and a fourth pass runs only where ties have to be dropped. Segments
of at most 65536 entries are selected by one block. The host never waits for the device. Counters take 16 KB
a task and longer segment. Triton does the same, a launch a tensor and pass. GPU times are unmeasured.

Not differentiable: the threshold moves with one entry, the cutoff with none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import check_lists, task_major

SCHEMA = "(Tensor[] base, Tensor[] finetuned, int[] k, str scope) -> (Tensor, Tensor)"
SCOPES = ("global", "tensor", "row")
NAN_MAGNITUDE = 0x7F800001


def row_count(x: Tensor) -> int:
    """Rows along the last dimension; a 0-d tensor is one row, an empty tensor has none."""
    if x.dim() == 0:
        return 1
    return x.numel() // x.shape[-1] if x.shape[-1] else 0


def segment_count(base: Sequence[Tensor], scope: str) -> int:
    """S: how many thresholds a task has under `scope`."""
    if scope == "global":
        return 1
    return len(base) if scope == "tensor" else sum(row_count(b) for b in base)


def magnitude_bits(finetuned: Tensor, base: Tensor) -> Tensor:
    """Magnitudes of the float32 deltas, flattened, as int32 of the same order; NaNs are equal and on top."""
    bits = (finetuned.float() - base.float()).reshape(-1).contiguous().view(torch.int32)
    return (bits & 0x7FFFFFFF).clamp(max=NAN_MAGNITUDE)


def kth_magnitude_reference(
    base: list[Tensor], finetuned: list[Tensor], k: list[int], scope: str
) -> tuple[Tensor, Tensor]:
    """Sort every segment; `finetuned` is task-major [T * L], the results are [S, T]."""
    tasks = len(finetuned) // len(base) if base else 0
    device = base[0].device if base else None
    shape = (segment_count(base, scope), tasks)
    thresholds = torch.full(shape, torch.inf, dtype=torch.float32, device=device)
    cutoffs = torch.zeros(shape, dtype=torch.int64, device=device)
    for t in range(tasks):
        task = finetuned[t * len(base) : (t + 1) * len(base)]
        for s, (bits, kept) in enumerate(_segments(base, task, k, scope)):
            if kept:
                thresholds[s, t], cutoffs[s, t] = _select(bits, kept)
    return thresholds, cutoffs


def _segments(base: list[Tensor], task: list[Tensor], k: list[int], scope: str) -> Iterator[tuple[Tensor, int]]:
    bits = [magnitude_bits(f, b) for f, b in zip(task, base, strict=True)]
    if scope == "global":
        yield torch.cat(bits), k[0]
    elif scope == "tensor":
        yield from zip(bits, k, strict=True)
    else:
        for b, x, kept in zip(base, bits, k, strict=True):
            for row in x.reshape(row_count(b), -1) if x.numel() else ():
                yield row, kept if row.numel() else 0


def _select(bits: Tensor, k: int) -> tuple[Tensor, int]:
    k = min(k, bits.numel())
    if k == 0:
        return torch.tensor(torch.inf), 0
    kth = bits.sort(descending=True).values[k - 1]
    ties = (bits == kth).nonzero().reshape(-1)
    kept = k - int((bits > kth).sum())
    return kth.view(torch.float32), bits.numel() if kept == ties.numel() else int(ties[kept - 1]) + 1


def kth_magnitude_fake(base: list[Tensor], finetuned: list[Tensor], k: list[int], scope: str) -> tuple[Tensor, Tensor]:
    tasks = len(finetuned) // len(base) if base else 0
    like = base[0] if base else torch.empty(0)
    shape = (segment_count(base, scope), tasks)
    return like.new_empty(shape, dtype=torch.float32), like.new_empty(shape, dtype=torch.int64)


OP = define_op("kth_magnitude", SCHEMA, kth_magnitude_reference, kth_magnitude_fake, triton=True)


def kth_magnitude(
    base: Sequence[Tensor],
    finetuned: Sequence[Sequence[Tensor]],
    k: int | Sequence[int],
    *,
    scope: str = "global",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Find the exact k-th largest task delta by magnitude, for all tasks in one pass.

    Args:
        base: L tensors of any shapes, float32, bfloat16 or float16.
        finetuned: T lists of L tensors, each with the shape, dtype and device of its base tensor.
        k: How many entries are to be kept: one number ("global"), or one a tensor, shape [L], counted in the
            tensor ("tensor") or in each of its rows ("row"). Between 0 and the segment's size.
        scope: "global", "tensor" or "row": where one threshold holds.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        thresholds, shape [S, T], float32, and cutoffs, shape [S, T], int64: entry j of segment s and task t
        is among the k kept exactly if its magnitude is greater than the threshold, or equal to it and
        j < cutoff. S is 1, L, or the number of rows.

    Raises:
        ArgumentError: If lists, shapes or dtypes do not fit together, or k is out of its domain.
        BackendError: If `backend` is absent.
    """
    base = list(base)
    check_lists(base, finetuned)
    if scope not in SCOPES:
        raise ArgumentError(f"scope must be one of {', '.join(SCOPES)}; got {scope!r}")
    counts = [k] if isinstance(k, int) else [int(count) for count in k]
    sizes = _segment_sizes(base, scope)
    if len(counts) != len(sizes):
        raise ArgumentError(f"k must have {len(sizes)} entries for scope={scope!r}, got {len(counts)}")
    for i, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        if not 0 <= count <= size:
            raise ArgumentError(f"k[{i}] must be in [0, {size}], the entries of its segment; got {count}")
    return OP(base, task_major(finetuned), counts, scope, backend=backend)


def _segment_sizes(base: Sequence[Tensor], scope: str) -> list[int]:
    if scope == "global":
        return [sum(b.numel() for b in base)]
    if scope == "tensor":
        return [b.numel() for b in base]
    return [b.shape[-1] if b.dim() else 1 for b in base]
