r"""A dense layer and its derivative along a direction, for linearized models.

    y  = x W^T + b,    dy = dx W^T + x dW^T + db

An absent tangent (None) is zero and costs nothing: a frozen layer does one product less, and so does the first layer,
whose input has no tangent. `dy` is linear in the tangents, and its gradient by them is the ordinary one of the layer
at the expansion point, so that only `x` and `W` are kept for it: ``grad_dx = g W``, ``grad_dW = g^T x``. Nothing is
differentiated by `x`, `W` and `b`, which are constants of a linearized model.

Products go by the route of `ops.linear`: no kernel of ours beats it on a CPU, and on an H200 cuBLAS computes the three
in bfloat16 at 609 TFLOP/s, sums included. The registered operator, y and dy together in one pass over x and W, runs
only where it is asked for by name. The backward pass never does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._dual import check_pair, plain, wide
from taskarith_fast.ops.linear import add_linear_, linear, linear_backward

SCHEMA = (
    "(Tensor x, Tensor? dx, Tensor weight, Tensor? bias, Tensor? dweight, Tensor? dbias, bool with_value) "
    "-> (Tensor, Tensor)"
)


def dual_linear_reference(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    with_value: bool,
) -> tuple[Tensor, Tensor]:
    """The formula in float32, or in float64 for float64; x and dx are [M, k]."""
    with torch.autocast(x.device.type, enabled=False):
        y = F.linear(wide(x), wide(weight), None if bias is None else wide(bias)) if with_value else x.new_empty(0)
        dy = wide(x.new_zeros(len(x), len(weight)))
        if dx is not None:
            dy = dy + F.linear(wide(dx), wide(weight))
        if dweight is not None:
            dy = dy + F.linear(wide(x), wide(dweight))
        if dbias is not None:
            dy = dy + wide(dbias)
    return y.detach().to(x.dtype).contiguous(), dy.to(x.dtype).contiguous()


def dual_linear_fake(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    with_value: bool,
) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape if with_value else (0,)), x.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, _, weight, _, dweight, _, _ = inputs
    ctx.save_for_backward(x if dweight is not None else None, weight)


def _backward(ctx: Any, _: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    _, by_dx, _, _, by_dweight, by_dbias, _ = ctx.needs_input_grad
    grad_dx, grad_dweight, grad_dbias = _gradients(grad, x, weight, by_dx, by_dweight, by_dbias)
    return None, grad_dx, None, None, grad_dweight, grad_dbias, None


OP = define_op(
    "dual_linear",
    SCHEMA,
    dual_linear_reference,
    dual_linear_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton=True,
)


def dual_linear(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Apply a dense layer to an input and its tangent.

    Args:
        x: Input, shape [..., k].
        dx: Tangent of x, shape [..., k], or None.
        weight: Weight, shape [o, k].
        bias: Bias, shape [o], or None.
        dweight: Tangent of the weight, shape [o, k], or None.
        dbias: Tangent of the bias, shape [o], or None.
        backend: "auto", or "reference" or "triton" for the registered operator.

    Returns:
        y of shape [..., o], without gradient, and dy of the same shape, differentiable by the tangents; None if
        there is no tangent.

    Raises:
        ArgumentError: If a tangent does not have the shape of its tensor, or under forward-mode AD.
        BackendError: If `backend` is absent.
    """
    check_pair("dual_linear", x=(x, dx), weight=(weight, dweight), bias=(bias, dbias))
    x, weight, bias = x.detach(), weight.detach(), plain(bias)
    if (dx is not None or dweight is not None) and backend != "auto":
        return _run(*_cast((x, dx, weight, bias, dweight, dbias)), with_value=True, backend=backend)
    return linear(x, weight, bias), linear_tangent(x, dx, weight, dweight, dbias, backend)


def linear_tangent(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None,
    backend: str = "auto",
) -> Tensor | None:
    """dy alone; arguments as dual_linear's."""
    x, dx, weight, dweight, dbias = operands = _cast((x, dx, weight, dweight, dbias))
    if dx is None and dweight is None:
        return None if dbias is None else dbias.expand(*x.shape[:-1], -1)
    if backend != "auto":
        return _run(x, dx, weight, None, dweight, dbias, with_value=False, backend=backend)[1]
    with torch.autocast(x.device.type, enabled=False):
        return _Tangent.apply(*operands)


def _run(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    *,
    with_value: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    rows, steps = _rows(x), None if dx is None else _rows(dx)
    y, dy = OP(rows, steps, weight, bias, dweight, dbias, with_value, backend=backend)
    shape = (*x.shape[:-1], len(weight))
    return y.detach().view(shape) if with_value else y, dy.view(shape)


def _gradients(
    grad: Tensor, x: Tensor | None, weight: Tensor, by_dx: bool, by_dweight: bool, by_dbias: bool
) -> tuple[Tensor | None, ...]:
    """The gradients by dx, dweight and dbias."""
    return *linear_backward(grad, x, weight, by_dx, by_dweight), grad.flatten(0, -2).sum(0) if by_dbias else None


def _cast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
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
        return (dy if dx is None else add_linear_(dy, _rows(dx), weight)).view(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        _, by_dx, _, by_dweight, by_dbias = ctx.needs_input_grad
        grad_dx, grad_dweight, grad_dbias = _gradients(grad, x, weight, by_dx, by_dweight, by_dbias)
        return None, grad_dx, None, grad_dweight, grad_dbias
