r"""Unpack bits into boolean masks, the inverse of ``pack_bits``: entry j is bit ``j % 8`` of byte ``j // 8``.

An eighth of a byte read and one byte written for each entry. Not differentiable: bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops.pack_bits import check_bits

SCHEMA = "(Tensor[] bits, int[] numels) -> Tensor[]"


def unpack_reference(bits: Tensor, numel: int) -> Tensor:
    """The first `numel` bits, bool [numel]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, None] >> shifts & 1).reshape(-1)[:numel].bool().contiguous()


def unpack_bits_reference(bits: list[Tensor], numels: list[int]) -> list[Tensor]:
    """Every mask, flat."""
    return [unpack_reference(packed, numel) for packed, numel in zip(bits, numels, strict=True)]


def unpack_bits_fake(bits: list[Tensor], numels: list[int]) -> list[Tensor]:
    return [packed.new_empty((numel,), dtype=torch.bool) for packed, numel in zip(bits, numels, strict=True)]


OP = define_op("unpack_bits", SCHEMA, unpack_bits_reference, unpack_bits_fake, triton=True)


def unpack_bits(bits: Sequence[Tensor], shapes: Sequence[Sequence[int]], *, backend: str = "auto") -> list[Tensor]:
    """Unpack masks.

    Args:
        bits: L packed masks, uint8 [ceil(numel / 8)].
        shapes: The L shapes of the masks.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L bool tensors of those shapes.

    Raises:
        ArgumentError: If a packed mask does not have the size of its shape.
        BackendError: If `backend` is absent.
    """
    bits, numels = list(bits), [math.prod(shape) for shape in shapes]
    check_bits(bits, numels)
    flat = OP(bits, numels, backend=backend) if bits else []
    return [mask.reshape(tuple(shape)) for mask, shape in zip(flat, shapes, strict=True)]
