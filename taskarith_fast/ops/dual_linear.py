r"""A dense layer and its derivative along a direction, for linearized models.

    y  = x W^T + b,    dy = dx W^T + x dW^T + db

An absent tangent (None) is zero and costs nothing: a frozen layer does one product less, and so does the first layer,
whose input has no tangent. `dy` is linear in the tangents, and its gradient by them is the ordinary one of the layer
at the expansion point, so that only `x` and `W` are kept for it: ``grad_dx = g W``, ``grad_dW = g^T x``. Nothing is
differentiated by `x`, `W` and `b`, which are constants of a linearized model.

Products go by the route of `ops.linear`, forward and backward. Not a registered operator, for the same reasons.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from taskarith_fast.ops._dual import check_pair, plain
from taskarith_fast.ops.linear import linear, linear_backward


def dual_linear(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Apply a dense layer to an input and its tangent.

    Args:
        x: Input, shape [..., k].
        dx: Tangent of x, shape [..., k], or None.
        weight: Weight, shape [o, k].
        bias: Bias, shape [o], or None.
        dweight: Tangent of the weight, shape [o, k], or None.
        dbias: Tangent of the bias, shape [o], or None.

    Returns:
        y of shape [..., o], without gradient, and dy of the same shape, differentiable by the tangents; None if
        there is no tangent.

    Raises:
        ArgumentError: If a tangent does not have the shape of its tensor, or under forward-mode AD.
    """
    check_pair("dual_linear", x=(x, dx), weight=(weight, dweight), bias=(bias, dbias))
    x, weight, bias = x.detach(), weight.detach(), plain(bias)
    return linear(x, weight, bias), linear_tangent(x, dx, weight, dweight, dbias)


def linear_tangent(
    x: Tensor, dx: Tensor | None, weight: Tensor, dweight: Tensor | None, dbias: Tensor | None
) -> Tensor | None:
    """dy alone; arguments as dual_linear's."""
    operands = _cast((x, dx, weight, dweight, dbias))
    if operands[1] is None and operands[3] is None:
        return None if operands[4] is None else operands[4].expand(*x.shape[:-1], -1)
    with torch.autocast(x.device.type, enabled=False):
        return _Tangent.apply(*operands)


def _cast(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Under autocast the operands in its type, as it would cast them for F.linear."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def _rows(x: Tensor) -> Tensor:
    """x as a matrix, so that torch takes one product, not one a sequence, for strided tensors too."""
    return x.reshape(-1, x.shape[-1])


class _Tangent(torch.autograd.Function):
    """dx W^T + x dW^T + db. One node, so that its two products share no more than x and W with the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dx: Any, weight: Tensor, dweight: Any, dbias: Any) -> Tensor:
        ctx.save_for_backward(x if dweight is not None else None, weight)
        shape = (*x.shape[:-1], len(weight))
        if dweight is None:
            return linear(_rows(dx), weight, dbias).view(shape)
        dy = linear(_rows(x), dweight, dbias)
        dy = dy if dx is None else dy.add_(linear(_rows(dx), weight))
        return dy.view(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        _, by_dx, _, by_dweight, by_dbias = ctx.needs_input_grad
        grad_dx, grad_dweight = linear_backward(grad, x, weight, by_dx, by_dweight)
        grad_dbias = grad.flatten(0, -2).sum(0) if by_dbias else None
        return None, grad_dx, None, grad_dweight, grad_dbias
