r"""Where, in a part of a model, ties at a threshold stop being kept.

Of the entries whose magnitude equals a task's threshold the first ones are kept, `left` of them counted over
the whole model in order. A part of it takes what it has of them and hands the rest on: its cutoff is the
position before which its ties are kept, as ties_merge wants it, and the account goes to the next part.

One read of the base and of every task. Not differentiable: a position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import check_lists
from taskarith_fast.ops.kth_magnitude import magnitude_bits

SCHEMA = "(Tensor base, Tensor[] finetuned, int[] values, int[] left) -> Tensor"


def tie_cutoffs_reference(base: Tensor, finetuned: list[Tensor], values: list[int], left: list[int]) -> Tensor:
    """Cutoffs and what is left after the part, [2, T]."""
    out = torch.zeros(2, len(finetuned), dtype=torch.int64, device=base.device)
    for t, model in enumerate(finetuned):
        ties = (magnitude_bits(model, base) == values[t]).nonzero().reshape(-1)
        if len(ties) <= left[t]:
            out[0, t], out[1, t] = base.numel(), left[t] - len(ties)
        elif left[t]:
            out[0, t] = ties[left[t] - 1] + 1
    return out


def tie_cutoffs_fake(base: Tensor, finetuned: list[Tensor], values: list[int], left: list[int]) -> Tensor:
    return base.new_empty((2, len(finetuned)), dtype=torch.int64)


OP = define_op("tie_cutoffs", SCHEMA, tie_cutoffs_reference, tie_cutoffs_fake, triton=True)


def tie_cutoffs(
    base: Tensor, finetuned: Sequence[Tensor], values: Sequence[int], left: Sequence[int], *, backend: str = "auto"
) -> tuple[list[int], list[int]]:
    """Account for the ties of one part.

    Args:
        base: One tensor of any shape, float32, bfloat16 or float16.
        finetuned: T tensors like `base`.
        values: Magnitude bits of each task's threshold (see kth_magnitude).
        left: How many ties each task may still keep, from 0.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        cutoffs, one a task: ties at flattened positions below it are kept; and how many are left for the parts
        that follow. A part with more ties than are left drops those from its cutoff on, which lies behind the
        last tie that is kept; where none is left, it lies before the next one.

    Raises:
        ArgumentError: If shapes or dtypes do not fit together, or there are not T numbers.
        BackendError: If `backend` is absent.
    """
    check_lists([base], [[model] for model in finetuned])
    if not len(values) == len(left) == len(finetuned) or min([0, *left]) < 0:
        raise ArgumentError(f"values and left must have T={len(finetuned)} entries, not negative; got {left}")
    out = OP(base, list(finetuned), list(values), list(left), backend=backend)
    cutoffs, rest = out.tolist()
    return cutoffs, rest
