r"""Add a dense layer's Fisher diagonal: squares of per-SAMPLE weight gradients, summed over the samples.

    fisher[o, k] += scale * sum_b ( sum_s grad_y[b, s, o] * x[b, s, k] )^2

The inner sum over a sample's S tokens is its weight gradient. It lives in a register tile and is squared there: no
per-sample gradient exists in memory. The square of a batch's summed gradient, which some published code accumulates,
is another quantity; Fisher merging (arXiv 2111.09832) needs this one. On GPUs it is written in Triton: operands of one
16-bit type go to tensor cores, float32 ones are multiplied in float32, never in tf32.

Cost: 2 B S o k multiplications and additions, as one ordinary weight gradient of the batch; one read and one write of
`fisher`. In place; not differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op

SCHEMA = "(Tensor(a!) fisher, Tensor x, Tensor grad_y, float scale) -> ()"
STORAGE = (torch.float32, torch.bfloat16, torch.float16)


def fisher_diag_reference(fisher: Tensor, x: Tensor, grad_y: Tensor, scale: float) -> None:
    """Sample by sample, in float32; fisher is [o, k], x [B, S, k], grad_y [B, S, o]."""
    with torch.autocast(x.device.type, enabled=False):
        for inputs, cotangents in zip(x.float(), grad_y.float(), strict=True):
            gradient = cotangents.t() @ inputs
            fisher.addcmul_(gradient, gradient, value=scale)


def fisher_diag_fake(fisher: Tensor, x: Tensor, grad_y: Tensor, scale: float) -> None:
    return None


OP = define_op("fisher_diag_", SCHEMA, fisher_diag_reference, fisher_diag_fake, triton=True)


def fisher_diag_(fisher: Tensor, x: Tensor, grad_y: Tensor, *, scale: float = 1.0, backend: str = "auto") -> Tensor:
    """Add the squared per-sample weight gradients of a dense layer y = x W^T.

    The dimensions between the first and the last one are a sample's tokens: [B, k] means one token, [B, h, w, k] h * w
    of them. A batch without samples or tokens adds nothing.

    Args:
        fisher: Shape [o, ...] with k entries a row (a convolution's weight is one of these), float32, contiguous;
            changed in place.
        x: Input of the layer, shape [B, ..., k], float32, bfloat16 or float16.
        grad_y: Gradient by the layer's output, of each sample's own loss, shape [B, ..., o], float32, bfloat16 or
            float16.
        scale: Factor of the squares, for example 1 / n for a mean over n samples.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        `fisher`.

    Raises:
        ArgumentError: If shapes or dtypes do not fit together.
        BackendError: If `backend` is absent.
    """
    check_rows(x, grad_y)
    o, k = grad_y.shape[-1], x.shape[-1]
    if fisher.dtype != torch.float32 or fisher.shape[:1] != (o,) or fisher.numel() != o * k:
        raise ArgumentError(
            f"fisher must be float32 with o={o} rows of k={k} entries, got {fisher.dtype} {list(fisher.shape)}"
        )
    check_contiguous("fisher", fisher)
    OP(fisher.view(o, k), by_samples(x), by_samples(grad_y), float(scale), backend=backend)
    return fisher


def check_rows(x: Tensor, grad_y: Tensor) -> None:
    """Check that x [B, ..., k] and grad_y [B, ..., o] hold the same rows in storage types; ArgumentError otherwise."""
    for name, tensor in (("x", x), ("grad_y", grad_y)):
        if tensor.dtype not in STORAGE or tensor.dim() < 2:
            raise ArgumentError(
                f"{name} must be float32, bfloat16 or float16 of at least 2 dimensions, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
    if x.shape[:-1] != grad_y.shape[:-1]:
        raise ArgumentError(
            f"grad_y must have x's dimensions before the last one, {list(x.shape[:-1])}, got {list(grad_y.shape[:-1])}"
        )


def check_contiguous(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that cannot be changed in place as one block of memory."""
    if not tensor.is_contiguous():
        raise ArgumentError(f"{name} must be contiguous, got strides {list(tensor.stride())}")


def by_samples(x: Tensor) -> Tensor:
    """[B, ..., k] as [B, S, k]."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
