r"""LayerNorm and RMSNorm with their derivatives along a direction.

With h = (x - mean) / std over the last dimension (RMSNorm: h = x / rms) the layer is y = w h + b, and

    dy = w (dx - mean(dx) - h mean(h dx)) / std + h dw + db

where RMSNorm has no mean(dx). The registered operator is dy alone, with statistics taken anew in float32 or wider;
y is torch's own, so that a model with zero tangents has the bits of the plain one. dy is linear in (dx, dw, db), and
its gradient by them is the ordinary one at x, of which only x and w are kept. Absent tangents (None) cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._dual import backend_of, check_pair, common_dtype, plain, wide

SCHEMA = "(Tensor x, Tensor? dx, Tensor? weight, Tensor? dweight, Tensor? dbias, float eps, bool centered) -> Tensor"


def normalized(x: Tensor, eps: float, centered: bool) -> tuple[Tensor, Tensor]:
    """h [..., D] and 1 / std [..., 1], in float32 or wider."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x - x.mean(-1, keepdim=True) if centered else x
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * rstd, rstd


def dual_layer_norm_reference(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    eps: float,
    centered: bool,
) -> Tensor:
    """The formula in float32, or in float64 for float64."""
    h, rstd = normalized(x, eps, centered)
    dy = torch.zeros_like(h)
    if dx is not None:
        dx = wide(dx)
        dh = (dx - dx.mean(-1, keepdim=True) if centered else dx) - h * (h * dx).mean(-1, keepdim=True)
        dy = dy + dh * rstd * (1.0 if weight is None else wide(weight))
    if dweight is not None:
        dy = dy + h * wide(dweight)
    if dbias is not None:
        dy = dy + wide(dbias)
    return dy.to(x.dtype).contiguous()


def dual_layer_norm_fake(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    eps: float,
    centered: bool,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, weight, _, _, ctx.eps, ctx.centered = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    _, by_dx, _, by_dweight, by_dbias, _, _ = ctx.needs_input_grad
    backward = _layer_norm_backward if ctx.centered else _rms_norm_backward
    grad_dx, grad_dweight = backward(grad, x, weight, ctx.eps, by_dx, by_dweight)
    grad_dbias = grad.flatten(0, -2).sum(0) if by_dbias else None
    return None, grad_dx, None, grad_dweight, grad_dbias, None, None


def _layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, eps: float, by_dx: bool, by_dweight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """torch's own kernel."""
    if not by_dx and not by_dweight:
        return None, None
    shape = [x.shape[-1]]
    _, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
    weight = x.new_ones(shape) if weight is None else weight
    mask = [by_dx, by_dweight, False]
    grads = torch.ops.aten.native_layer_norm_backward(grad.contiguous(), x, shape, mean, rstd, weight, None, mask)
    return grads[0] if by_dx else None, grads[1] if by_dweight else None


def _rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, eps: float, by_dx: bool, by_dweight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dh/dx is symmetric, so the formula of dy is its own transpose."""
    cotangent = grad if weight is None else grad * weight
    grad_dx = OP(x, cotangent, None, None, None, eps, False, backend=backend_of(x, "auto")) if by_dx else None
    h, _ = normalized(x, eps, False)
    grad_dweight = (grad * h).flatten(0, -2).sum(0).to(x.dtype) if by_dweight else None
    return grad_dx, grad_dweight


OP = define_op(
    "dual_layer_norm",
    SCHEMA,
    dual_layer_norm_reference,
    dual_layer_norm_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton=True,
)


def dual_layer_norm(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Normalise an input over its last dimension, and its tangent with it.

    Args:
        x: Shape [..., D].
        dx: Tangent of x, or None.
        weight: Shape [D]; None is 1.
        bias: Shape [D]; None is 0.
        dweight: Tangent of the weight, or None.
        dbias: Tangent of the bias, or None.
        eps: Added to the variance.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated", of dy.

    Returns:
        y of shape [..., D], without gradient, and dy, differentiable by the tangents; None if there is no tangent.

    Raises:
        ArgumentError: If a shape does not fit, or under forward-mode AD.
        BackendError: If `backend` is absent.
    """
    check_pair("dual_layer_norm", x=(x, dx), weight=(weight, dweight), bias=(bias, dbias))
    _check_width(x, weight=weight, bias=bias)
    y = F.layer_norm(x.detach(), x.shape[-1:], plain(weight), plain(bias), eps)
    return y, norm_tangent(x, dx, weight, dweight, dbias, eps, y.dtype, True, backend)


def dual_rms_norm(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None = None,
    dweight: Tensor | None = None,
    *,
    eps: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Divide an input by its root mean square over the last dimension, and carry its tangent.

    Args, Returns and Raises as dual_layer_norm's; an `eps` of None is torch's choice, that of the type of x.
    """
    check_pair("dual_rms_norm", x=(x, dx), weight=(weight, dweight))
    _check_width(x, weight=weight)
    y = F.rms_norm(x.detach(), x.shape[-1:], plain(weight), eps)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return y, norm_tangent(x, dx, weight, dweight, None, eps, y.dtype, False, backend)


def norm_tangent(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    centered: bool,
    backend: str = "auto",
) -> Tensor | None:
    """dy alone in the type `dtype`, or None if no tangent is present; mixed types are computed in the widest."""
    if dx is None and dweight is None and dbias is None:
        return None
    operands = common_dtype({"x": x.detach(), "dx": dx, "w": plain(weight), "dw": dweight, "db": dbias})
    return OP(*operands.values(), eps, centered, backend=backend_of(x, backend)).to(dtype)


def _check_width(x: Tensor, **parameters: Tensor | None) -> None:
    for name, parameter in parameters.items():
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ArgumentError(f"{name} must have shape {list(x.shape[-1:])}, got {list(parameter.shape)}")
