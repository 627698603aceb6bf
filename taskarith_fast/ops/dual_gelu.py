r"""The Gaussian error unit in its three forms, with its derivative along a direction.

    none   g(x) = x Phi(x)                     g'(x) = Phi(x) + x phi(x)
    tanh   g(x) = x (1 + t) / 2                g'(x) = (1 + t) / 2 + x (1 - t^2) u' / 2
    quick  g(x) = x s,  s = sigmoid(1.702 x)   g'(x) = s + 1.702 x s (1 - s)

with t = tanh(u) and u = sqrt(2 / pi) (x + 0.044715 x^3). The registered operator is dy = g'(x) dx; its gradient by dx
is the same product, so that only x is kept. y is torch's own, or x * sigmoid(1.702 x).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskarith_fast.errors import check_choice
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._dual import backend_of, check_pair, wide

SCHEMA = "(Tensor x, Tensor dx, str approximate) -> Tensor"
FORMS = ("none", "tanh", "quick")

_QUICK = 1.702


def gelu_slope(x: Tensor, approximate: str) -> Tensor:
    """g'(x), elementwise."""
    if approximate == "none":
        phi = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return 0.5 * torch.erfc(-x / math.sqrt(2)) + x * phi
    if approximate == "tanh":
        t = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    s = torch.sigmoid(_QUICK * x)
    return s + _QUICK * x * s * (1 - s)


def dual_gelu_reference(x: Tensor, dx: Tensor, approximate: str) -> Tensor:
    """The formula in float32, or in float64 for float64."""
    return (gelu_slope(wide(x), approximate) * wide(dx)).to(x.dtype).contiguous()


def dual_gelu_fake(x: Tensor, dx: Tensor, approximate: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.approximate = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
    (x,) = ctx.saved_tensors
    return None, OP(x, grad, ctx.approximate, backend=backend_of(x, "auto")), None


OP = define_op(
    "dual_gelu",
    SCHEMA,
    dual_gelu_reference,
    dual_gelu_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton=True,
)


def dual_gelu(
    x: Tensor, dx: Tensor | None, *, approximate: str = "none", backend: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    """Apply a GELU to an input and its tangent.

    Args:
        x: Any shape.
        dx: Tangent of x, or None.
        approximate: "none" (erf), "tanh" or "quick" (x sigmoid(1.702 x), as in OpenAI's CLIP).
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated", of dy.

    Returns:
        y like x, without gradient, and dy, differentiable by dx; None if dx is.

    Raises:
        ArgumentError: If dx does not have the shape of x, the form is unknown, or under forward-mode AD.
        BackendError: If `backend` is absent.
    """
    check_choice("approximate", approximate, FORMS)
    check_pair("dual_gelu", x=(x, dx))
    x = x.detach()
    y = x * torch.sigmoid(_QUICK * x) if approximate == "quick" else F.gelu(x, approximate=approximate)
    return y, gelu_tangent(x, dx, approximate, backend)


def gelu_tangent(x: Tensor, dx: Tensor | None, approximate: str, backend: str = "auto") -> Tensor | None:
    """dy alone, unchecked; arguments as dual_gelu's."""
    return None if dx is None else OP(x, dx.to(x.dtype), approximate, backend=backend_of(x, backend))
