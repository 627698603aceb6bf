r"""One AdamW step of the selected entries of a dense layer's weight, straight from its input and output gradient.

    g[j] = sum_n grad_y[n, o_j] * x[n, k_j]        (o_j, k_j): the j-th selected entry, in row-major order

then ``sparse_adamw_step_`` with g, for each tile of the weight while its gradient is still in registers: no gradient
exists in memory, neither dense nor compact. What needs all gradients at once (clipping, loss scaling, a look for
non-finite ones, accumulation) is not to be had.

Cost: that of ``masked_wgrad_``, and 16 bytes a selected entry for m and v. Made for GPUs, in Triton; on the CPU
``masked_wgrad_`` followed by ``sparse_adamw_step_`` is the fast way, and this is the reference. In place; not
differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import STORAGE_TYPES
from taskarith_fast.ops.fisher_diag_ import check_contiguous, check_rows
from taskarith_fast.ops.masked_wgrad_ import check_mask, masked_wgrad_reference
from taskarith_fast.ops.selection import Selection
from taskarith_fast.ops.sparse_adamw_step_ import sparse_adamw_step_reference
from taskarith_fast.ops.unpack_bits import unpack_reference

SCHEMA = (
    "(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? master, Tensor x, Tensor grad_y, "
    "Tensor mask, Tensor row_starts, float lr, float beta1, float beta2, float eps, float weight_decay, int step, "
    "bool maximize) -> ()"
)


def masked_wgrad_adamw_step_reference(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None, x: Tensor, grad_y: Tensor,
    mask: Tensor, row_starts: Tensor, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    step: int, maximize: bool,
) -> None:  # fmt: skip
    """The whole gradient in float32, then the step of the selected entries; param is [o, k], the states [count]."""
    grad = torch.zeros_like(exp_avg)
    masked_wgrad_reference(grad, x, grad_y, mask, row_starts)
    selection = Selection.of(unpack_reference(mask, param.numel()))
    sparse_adamw_step_reference(
        [param], [grad], [exp_avg], [exp_avg_sq], [] if master is None else [master], [selection.items],
        [selection.offsets], [], None, None, None, lr, beta1, beta2, eps, weight_decay, [], step, maximize,
    )  # fmt: skip


def masked_wgrad_adamw_step_fake(*args: object) -> None:
    return None


OP = define_op(
    "masked_wgrad_adamw_step_",
    SCHEMA,
    masked_wgrad_adamw_step_reference,
    masked_wgrad_adamw_step_fake,
    triton=True,
)


def masked_wgrad_adamw_step_(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    x: Tensor,
    grad_y: Tensor,
    mask: Tensor,
    row_starts: Tensor,
    *,
    lr: float,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
    master: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Update the selected entries of a dense layer's weight and their moments in place, without a gradient.

    Args:
        param: Weight, shape [o, ...] with k entries a row, float32, bfloat16 or float16, contiguous.
        exp_avg: First moments m of the selected entries, in row-major order, float32 [count].
        exp_avg_sq: Second moments v, float32 [count].
        x: Input of the layer, shape [..., k], float32, bfloat16 or float16.
        grad_y: Gradient by its output, shape [..., o], float32, bfloat16 or float16.
        mask: Packed mask of the weight (``pack_bits``; True = selected), uint8 [ceil(o k / 8)].
        row_starts: Selected entries before each row, ``row_starts(mask, shape)``, int64 [o + 1].
        lr: Learning rate.
        step: Number of this step, from 1 on.
        betas: Decay of the moments.
        eps: Added to the denominator.
        weight_decay: Decoupled decay, times `lr`.
        maximize: Ascend instead.
        master: None, or float32 [count]: the weights that are updated; `param` becomes their rounded copy.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Raises:
        ArgumentError: If sizes, dtypes or layouts do not fit together.
        BackendError: If `backend` is absent.
    """
    check_rows(x, grad_y)
    o, k = grad_y.shape[-1], x.shape[-1]
    check_mask(mask, row_starts, o, k)
    if param.dtype not in STORAGE_TYPES or param.shape[:1] != (o,) or param.numel() != o * k:
        raise ArgumentError(
            f"param must be float32, bfloat16 or float16 with o={o} rows of k={k} entries, "
            f"got {param.dtype} {list(param.shape)}"
        )
    check_contiguous("param", param)
    for name, state in {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "master": master}.items():
        if state is None:
            continue
        if state.dtype != torch.float32 or state.shape != exp_avg.shape or state.dim() != 1:
            raise ArgumentError(f"{name} must be float32 of shape [count], got {state.dtype} {list(state.shape)}")
        check_contiguous(name, state)
    if step < 1:
        raise ArgumentError(f"step must be 1 or more, got {step}")
    OP(
        param.view(o, k), exp_avg, exp_avg_sq, master, x.reshape(-1, k), grad_y.reshape(-1, o), mask, row_starts,
        lr, *betas, eps, weight_decay, step, maximize, backend=backend,
    )  # fmt: skip
