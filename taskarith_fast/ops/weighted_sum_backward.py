r"""Differentiate a weighted sum by its weights: ``out[t, i] = <grads[i], finetuned[t, i] - base[i]>``.

This is all that AdaMerging (Yang 2024, eq. 7) learns from: with ``theta[i] = base[i] + sum_t w[t, i] tau[t,
i]`` and ``grads[i] = d loss / d theta[i]``, out is ``d loss / d w``. One pass reads the gradient, the base
and every task once (T + 2 reads, nothing written) and keeps no task vector. Sums run in float64 over fixed
blocks, combined in order, so the bytes do not depend on the number of threads.

On a GPU (CUDA C++): blocks sum chunks of 4096 elements, a second kernel adds these up in order, so the bytes
do not depend on the GPU's size either.

Not differentiable a second time: no method of the field asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import check_like, check_lists, task_major

SCHEMA = "(Tensor[] grads, Tensor[] base, Tensor[] finetuned) -> Tensor"


def weighted_sum_backward_reference(grads: list[Tensor], base: list[Tensor], finetuned: list[Tensor]) -> Tensor:
    """The dot products in float64, one by one; `finetuned` is task-major [T * L]."""
    length = len(base)
    out = grads[0].new_zeros(len(finetuned), dtype=torch.float64) if grads else torch.zeros(0, dtype=torch.float64)
    for j, f in enumerate(finetuned):
        i = j % length
        out[j] = ((f.double() - base[i].double()) * grads[i].double()).sum()
    return out.reshape(-1, length) if length else out.reshape(0, 0)


def weighted_sum_backward_fake(grads: list[Tensor], base: list[Tensor], finetuned: list[Tensor]) -> Tensor:
    like = base[0] if base else torch.empty(0)
    return like.new_empty((len(finetuned) // len(base) if base else 0, len(base)), dtype=torch.float64)


OP = define_op(
    "weighted_sum_backward", SCHEMA, weighted_sum_backward_reference, weighted_sum_backward_fake, triton=True
)


def weighted_sum_backward(
    grads: Sequence[Tensor],
    base: Sequence[Tensor],
    finetuned: Sequence[Sequence[Tensor]],
    *,
    backend: str = "auto",
) -> Tensor:
    """Give the gradient of a loss by all weights of ``weighted_sum`` in one pass.

    Args:
        grads: d loss / d merged, L tensors like `base`.
        base: L tensors of any shapes, float32, bfloat16 or float16.
        finetuned: T lists of L tensors, each with the shape, dtype and device of its base tensor.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        d loss / d weights, shape [T, L], float64. An empty tensor gives 0.

    Raises:
        ArgumentError: If lists, shapes or dtypes do not fit together.
        BackendError: If `backend` is absent.
    """
    base, grads = list(base), list(grads)
    check_lists(base, finetuned)
    check_like(base, grads, "grads")
    if not base:
        return torch.zeros(len(finetuned), 0, dtype=torch.float64)
    return OP(grads, base, task_major(finetuned), backend=backend)
