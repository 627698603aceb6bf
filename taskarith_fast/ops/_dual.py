"""What the pair operators share: checks, sums of tangents that may be absent, where float64 runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import _refuse_forward_ad


def check_pair(op: str, **pairs: tuple[Tensor | None, Tensor | None]) -> None:
    """Refuse tangents that do not have the shape of their tensor, and tensors under forward-mode AD.

    Args:
        op: The operator's name.
        pairs: Name of each tensor -> (tensor, tangent or None).

    Raises:
        ArgumentError: Naming the tangent, or the operator.
    """
    for name, (tensor, tangent) in pairs.items():
        if tangent is None:
            continue
        got = None if tensor is None else list(tensor.shape)
        if got != list(tangent.shape):
            raise ArgumentError(f"d{name} must have the shape of {name}, {got}, got {list(tangent.shape)}")
    _refuse_forward_ad(op, [tensor for pair in pairs.values() for tensor in pair if tensor is not None])


def plain(tensor: Tensor | None) -> Tensor | None:
    """The tensor cut off from autograd: an expansion point is a constant."""
    return None if tensor is None else tensor.detach()


def add_tangents(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the type that references compute in: float64 stays, all others become float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def backend_of(tensor: Tensor, backend: str) -> str:
    """`backend`, or the reference for float64, which no kernel takes."""
    return "reference" if backend == "auto" and tensor.dtype == torch.float64 else backend


def common_dtype(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """All tensors in the widest of their types; autograd passes through."""
    present = [t for t in tensors.values() if t is not None]
    dtype = present[0].dtype
    for tensor in present[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return {name: None if t is None else t.to(dtype) for name, t in tensors.items()}
