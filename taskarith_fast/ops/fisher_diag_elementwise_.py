r"""Add the Fisher diagonal of parameters that act element by element: biases, norm weights, LayerScale, embeddings.

    fisher[d] += scale * sum_b ( sum_s grad_y[b, s, d] * x[b, s, d] )^2

x is what the parameter multiplies: the normalised input of a LayerNorm's weight, the branch of a LayerScale; a bias or
an embedding multiplies nothing (None, ones). A parameter with an entry of its own for each token, such as a position
embedding, is the case S = 1.

Cost: one read of grad_y and x. In place; not differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops.fisher_diag_ import STORAGE, check_contiguous

SCHEMA = "(Tensor(a!) fisher, Tensor grad_y, Tensor? x, float scale) -> ()"


def fisher_diag_elementwise_reference(fisher: Tensor, grad_y: Tensor, x: Tensor | None, scale: float) -> None:
    """The formula in float32; fisher is [d], grad_y and x [B, S, d]."""
    terms = grad_y.float() if x is None else grad_y.float() * x.float()
    fisher.add_(terms.sum(1).square().sum(0), alpha=scale)


def fisher_diag_elementwise_fake(fisher: Tensor, grad_y: Tensor, x: Tensor | None, scale: float) -> None:
    return None


OP = define_op(
    "fisher_diag_elementwise_", SCHEMA, fisher_diag_elementwise_reference, fisher_diag_elementwise_fake, triton=True
)


def fisher_diag_elementwise_(
    fisher: Tensor, grad_y: Tensor, x: Tensor | None = None, *, scale: float = 1.0, backend: str = "auto"
) -> Tensor:
    """Add the squared per-sample gradients of a parameter p in y = x * p (+ ...), or of p in y = p + ... .

    The last dimensions of grad_y are those of the parameter; the ones between them and the first are a sample's tokens
    and are summed. So a bias [d] with grad_y [B, S, d] sums over S, a position embedding [S, d] with the same grad_y
    does not. A batch without samples adds nothing.

    Args:
        fisher: The parameter's shape, float32, contiguous; changed in place.
        grad_y: Gradient by y, of each sample's own loss, shape [B, ..., *fisher.shape], float32, bfloat16 or float16.
        x: What the parameter multiplies, shape of grad_y, float32, bfloat16 or float16; None stands for ones.
        scale: Factor of the squares, for example 1 / n for a mean over n samples.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        `fisher`.

    Raises:
        ArgumentError: If shapes or dtypes do not fit together.
        BackendError: If `backend` is absent.
    """
    for name, tensor in (("grad_y", grad_y), ("x", x)):
        if tensor is not None and tensor.dtype not in STORAGE:
            raise ArgumentError(f"{name} must be float32, bfloat16 or float16, got {tensor.dtype}")
    if fisher.dtype != torch.float32:
        raise ArgumentError(f"fisher must be float32, got {fisher.dtype}")
    check_contiguous("fisher", fisher)
    split = grad_y.dim() - fisher.dim()
    if split < 1 or grad_y.shape[split:] != fisher.shape:
        raise ArgumentError(
            f"grad_y must have shape [B, ..., {', '.join(map(str, fisher.shape))}], got {list(grad_y.shape)}"
        )
    if x is not None and x.shape != grad_y.shape:
        raise ArgumentError(f"x must have grad_y's shape {list(grad_y.shape)}, got {list(x.shape)}")
    shape = (grad_y.shape[0], math.prod(grad_y.shape[1:split]), fisher.numel())
    OP(fisher.view(-1), grad_y.reshape(shape), None if x is None else x.reshape(shape), float(scale), backend=backend)
    return fisher
