r"""The sum of the squares of the selected entries of each of many tensors, for norms over what is trained.

``out[i] = sum of x[j]^2 over the selected j`` in float64: exact products, summed block by block of 65,536 entries,
so that the result does not depend on the threads. A NaN or infinite entry makes its sum so; finite entries cannot
overflow. A tensor may be compact: then all of it counts. Cost: one read of the lines that hold selected entries. Not
differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import STORAGE_TYPES
from taskarith_fast.ops.selection import Selection, flat_index

SCHEMA = "(Tensor[] tensors, Tensor[] items, Tensor[] offsets, int[] numels) -> Tensor"


def selected_square_sums_reference(
    tensors: list[Tensor], items: list[Tensor], offsets: list[Tensor], numels: list[int]
) -> Tensor:
    """Sums [L], float64."""
    sums = []
    for x, item, offset, numel in zip(tensors, items, offsets, numels, strict=True):
        dense = x.numel() == numel and offset.numel()
        chosen = x.reshape(-1)[flat_index(item, offset, numel)] if dense else x
        sums.append(chosen.double().square().sum())
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)


def selected_square_sums_fake(
    tensors: list[Tensor], items: list[Tensor], offsets: list[Tensor], numels: list[int]
) -> Tensor:
    like = tensors[0] if tensors else torch.empty(0)
    return like.new_empty(len(tensors), dtype=torch.float64)


OP = define_op("selected_square_sums", SCHEMA, selected_square_sums_reference, selected_square_sums_fake, triton=True)


def selected_square_sums(
    tensors: Sequence[Tensor], selections: Sequence[Selection], *, backend: str = "auto"
) -> Tensor:
    """Sum the squares of the selected entries of each tensor.

    Args:
        tensors: L tensors, dense or compact [count]; float32, bfloat16 or float16.
        selections: What is selected in each.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        Sums, shape [L], float64.

    Raises:
        ArgumentError: If lengths, sizes or dtypes do not fit together.
        BackendError: If `backend` is absent.
    """
    if len(tensors) != len(selections):
        raise ArgumentError(f"selections must have {len(tensors)} entries like tensors, got {len(selections)}")
    for i, (x, selection) in enumerate(zip(tensors, selections, strict=True)):
        if x.dtype not in STORAGE_TYPES or x.numel() not in (selection.numel, selection.count):
            raise ArgumentError(
                f"tensors[{i}] must be float32, bfloat16 or float16 of {selection.numel} or {selection.count} "
                f"entries, got {x.dtype} of {x.numel()}"
            )
    return OP(
        list(tensors), [s.items for s in selections], [s.offsets for s in selections],
        [s.numel for s in selections], backend=backend,
    )  # fmt: skip
