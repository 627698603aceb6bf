r"""Add a dense layer's weight gradient at selected entries only: no dense gradient exists.

    values[j] += sum_n grad_y[n, o_j] * x[n, k_j]        (o_j, k_j): the j-th selected entry, in row-major order

The gradient is computed tile by tile, tiles without a selected entry are skipped, and of the others only the selected
entries leave the registers. On the CPU, rows of the weight without a selected entry are never looked at, and where few
entries are selected each one is a dot product of its own.

Cost: at most the 2 N o k operations of the whole weight gradient, less in proportion to rows that are skipped; memory
8 bytes a row and the [count] values. In place; not differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops.fisher_diag_ import check_contiguous, check_rows
from taskarith_fast.ops.pack_bits import check_bits
from taskarith_fast.ops.unpack_bits import unpack_bits, unpack_reference

SCHEMA = "(Tensor(a!) values, Tensor x, Tensor grad_y, Tensor mask, Tensor row_starts) -> ()"


def masked_wgrad_reference(values: Tensor, x: Tensor, grad_y: Tensor, mask: Tensor, row_starts: Tensor) -> None:
    """The whole gradient in float32, then the selected entries; x is [N, k], grad_y [N, o]."""
    with torch.autocast(x.device.type, enabled=False):
        gradient = grad_y.float().t() @ x.float()
    values += gradient.flatten()[unpack_reference(mask, gradient.numel())]


def masked_wgrad_fake(values: Tensor, x: Tensor, grad_y: Tensor, mask: Tensor, row_starts: Tensor) -> None:
    return None


OP = define_op("masked_wgrad_", SCHEMA, masked_wgrad_reference, masked_wgrad_fake, triton=True)


def row_starts(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Count the selected entries before each row of a weight: what ``masked_wgrad`` needs besides the bits.

    Args:
        mask: Packed mask of the weight (``pack_bits``), uint8 [ceil(o k / 8)].
        shape: Shape of the weight, [o, ...].

    Returns:
        Shape [o + 1], int64, on the mask's device; the last entry is the number of selected entries.

    Raises:
        ArgumentError: If the mask does not have the size of the shape.
    """
    selected = unpack_bits([mask], [shape])[0].flatten(1).sum(1)
    return torch.nn.functional.pad(selected.cumsum(0), (1, 0))


def masked_wgrad_(
    values: Tensor, x: Tensor, grad_y: Tensor, mask: Tensor, row_starts: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Add the weight gradient of a dense layer y = x W^T at the selected entries of W.

    Args:
        values: One a selected entry, in row-major order, shape [count], float32, contiguous; changed in place.
        x: Input of the layer, shape [..., k], float32, bfloat16 or float16.
        grad_y: Gradient by its output, shape [..., o], float32, bfloat16 or float16.
        mask: Packed mask of the weight [o, k] (``pack_bits``; True = selected), uint8 [ceil(o k / 8)].
        row_starts: Selected entries before each row, ``row_starts(mask, shape)``, int64 [o + 1].
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        `values`.

    Raises:
        ArgumentError: If shapes or dtypes do not fit together.
        BackendError: If `backend` is absent.
    """
    check_rows(x, grad_y)
    o, k = grad_y.shape[-1], x.shape[-1]
    check_mask(mask, row_starts, o, k)
    if values.dtype != torch.float32 or values.dim() != 1:
        raise ArgumentError(f"values must be float32 of shape [count], got {values.dtype} {list(values.shape)}")
    check_contiguous("values", values)
    OP(values, x.reshape(-1, k), grad_y.reshape(-1, o), mask, row_starts, backend=backend)
    return values


def masked_wgrad(x: Tensor, grad_y: Tensor, mask: Tensor, row_starts: Tensor, *, backend: str = "auto") -> Tensor:
    """Return the weight gradient of a dense layer at the selected entries: ``masked_wgrad_`` from zeros.

    Args:
        x, grad_y, mask, row_starts, backend: As of ``masked_wgrad_``.

    Returns:
        Shape [count], float32.

    Raises:
        ArgumentError: If shapes or dtypes do not fit together.
        BackendError: If `backend` is absent.
    """
    values = x.new_zeros(int(row_starts[-1]), dtype=torch.float32)
    return masked_wgrad_(values, x, grad_y, mask, row_starts, backend=backend)


def check_mask(mask: Tensor, row_starts: Tensor, o: int, k: int) -> None:
    """Check the sizes of the packed mask of a weight [o, k] and of its row_starts; ArgumentError otherwise."""
    check_bits([mask], [o * k])
    if row_starts.dtype != torch.int64 or row_starts.shape != (o + 1,):
        raise ArgumentError(
            f"row_starts must be int64 of shape [o + 1 = {o + 1}], got {row_starts.dtype} {list(row_starts.shape)}"
        )
