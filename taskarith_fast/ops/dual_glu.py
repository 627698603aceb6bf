r"""Gated linear units (Shazeer 2020), y = g(a) b, with their derivative along a direction.

    dy = g'(a) b da + g(a) db

for g = relu (ReGLU), silu (SwiGLU), gelu (GEGLU) or gelu_tanh (GEGLU of T5 1.1). The registered operator is dy alone;
y is torch's own. dy is linear in (da, db) and elementwise, so its gradient by each is the same operator with one
tangent, and only a and b are kept. Absent tangents (None) cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._dual import backend_of, check_pair, wide
from taskarith_fast.ops.dual_gelu import gelu_slope

SCHEMA = "(Tensor a, Tensor? da, Tensor b, Tensor? db, str form) -> Tensor"

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}
"""g by its name."""


def _slope(a: Tensor, form: str) -> Tensor:
    if form == "relu":
        return (a > 0).to(a.dtype)
    if form == "silu":
        s = torch.sigmoid(a)
        return s + a * s * (1 - s)
    return gelu_slope(a, "none" if form == "gelu" else "tanh")


def dual_glu_reference(a: Tensor, da: Tensor | None, b: Tensor, db: Tensor | None, form: str) -> Tensor:
    """The formula in float32, or in float64 for float64."""
    dtype, a, b = a.dtype, wide(a), wide(b)
    dy = torch.zeros_like(a)
    if da is not None:
        dy = dy + _slope(a, form) * b * wide(da)
    if db is not None:
        dy = dy + FORMS[form](a) * wide(db)
    return dy.to(dtype).contiguous()


def dual_glu_fake(a: Tensor, da: Tensor | None, b: Tensor, db: Tensor | None, form: str) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, _, b, _, ctx.form = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    backend = backend_of(a, "auto")
    by_da = OP(a, grad, b, None, ctx.form, backend=backend) if ctx.needs_input_grad[1] else None
    by_db = OP(a, None, b, grad, ctx.form, backend=backend) if ctx.needs_input_grad[3] else None
    return None, by_da, None, by_db, None


OP = define_op(
    "dual_glu",
    SCHEMA,
    dual_glu_reference,
    dual_glu_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton=True,
)


def dual_glu(
    a: Tensor, da: Tensor | None, b: Tensor, db: Tensor | None, *, form: str, backend: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    """Multiply an activation by its gate, and carry the tangents of both.

    Args:
        a: What is activated, any shape.
        da: Tangent of a, or None.
        b: The gate, shape of a.
        db: Tangent of b, or None.
        form: "relu", "silu", "gelu" or "gelu_tanh".
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated", of dy.

    Returns:
        y like a, without gradient, and dy, differentiable by the tangents; None if there is no tangent.

    Raises:
        ArgumentError: If shapes do not fit, the form is unknown, or under forward-mode AD.
        BackendError: If `backend` is absent.
    """
    check_choice("form", form, tuple(FORMS))
    check_pair("dual_glu", a=(a, da), b=(b, db))
    if a.shape != b.shape:
        raise ArgumentError(f"b must have the shape of a, {list(a.shape)}, got {list(b.shape)}")
    a, b = a.detach(), b.detach()
    return FORMS[form](a) * b, glu_tangent(a, da, b, db, form, backend)


def glu_tangent(
    a: Tensor, da: Tensor | None, b: Tensor, db: Tensor | None, form: str, backend: str = "auto"
) -> Tensor | None:
    """dy alone, unchecked; arguments as dual_glu's."""
    if da is None and db is None:
        return None
    da, db = (None if t is None else t.to(a.dtype) for t in (da, db))
    return OP(a, da, b.to(a.dtype), db, form, backend=backend_of(a, backend))
