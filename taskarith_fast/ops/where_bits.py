r"""Choose between two lists of tensors by bits: ``out[j] = on[j]`` where bit j is set, else ``off[j]``.

How a TALL mask becomes a model: the merged weights where the task needs them, the pre-trained ones elsewhere.
Values are moved, not computed: bit by bit those of `on` or `off`. Two reads and one write of every element.

Not differentiable: it makes models, it does not train them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._lists import STORAGE_TYPES, check_like
from taskarith_fast.ops.pack_bits import check_bits
from taskarith_fast.ops.unpack_bits import unpack_reference

SCHEMA = "(Tensor[] bits, Tensor[] on, Tensor[] off) -> Tensor[]"


def where_bits_reference(bits: list[Tensor], on: list[Tensor], off: list[Tensor]) -> list[Tensor]:
    """Unpack and choose, tensor by tensor."""
    masks = (unpack_reference(packed, b.numel()).reshape(b.shape) for packed, b in zip(bits, off, strict=True))
    return [torch.where(mask, a, b).contiguous() for mask, a, b in zip(masks, on, off, strict=True)]


def where_bits_fake(bits: list[Tensor], on: list[Tensor], off: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(b, memory_format=torch.contiguous_format) for b in off]


OP = define_op("where_bits", SCHEMA, where_bits_reference, where_bits_fake, triton=True)


def where_bits(
    bits: Sequence[Tensor], on: Sequence[Tensor], off: Sequence[Tensor], *, backend: str = "auto"
) -> list[Tensor]:
    """Choose between two lists of tensors by packed masks.

    Args:
        bits: L packed masks, uint8 [ceil(numel / 8)], on the device of the tensors.
        on: L tensors of any shapes, float32, bfloat16 or float16: the values where a bit is set.
        off: L tensors like `on`: the values elsewhere.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L new contiguous tensors like `off`.

    Raises:
        ArgumentError: If lists, shapes or dtypes do not fit together.
        BackendError: If `backend` is absent.
    """
    bits, on, off = list(bits), list(on), list(off)
    check_like(on, off, "off")
    for i, tensor in enumerate(on):
        if tensor.dtype not in STORAGE_TYPES:
            raise ArgumentError(f"on[{i}] must be float32, bfloat16 or float16, got {tensor.dtype}")
    check_bits(bits, [tensor.numel() for tensor in on])
    return OP(bits, on, off, backend=backend) if on else []
