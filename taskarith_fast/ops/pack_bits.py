r"""Pack boolean masks into bits: bit ``j % 8`` of byte ``j // 8`` is entry j of the flattened mask.

This is numpy's ``packbits(..., bitorder="little")``. Each mask starts on a byte of its own; the bits after
the last entry are zero. One byte read and an eighth written for each entry. ``unpack_bits`` is the inverse,
``where_bits`` chooses between two tensors without unpacking.

Not differentiable: bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op

SCHEMA = "(Tensor[] masks) -> Tensor[]"


def pack_reference(mask: Tensor) -> Tensor:
    """Pack the last dimension of a bool tensor."""
    size = (mask.shape[-1] + 7) // 8
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, 8 * size - mask.shape[-1]))
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.reshape(*mask.shape[:-1], size, 8) * weights).sum(-1, dtype=torch.uint8)


def pack_bits_reference(masks: list[Tensor]) -> list[Tensor]:
    """Every mask flattened and packed."""
    return [pack_reference(mask.reshape(-1)) for mask in masks]


def pack_bits_fake(masks: list[Tensor]) -> list[Tensor]:
    return [mask.new_empty(((mask.numel() + 7) // 8,), dtype=torch.uint8) for mask in masks]


OP = define_op("pack_bits", SCHEMA, pack_bits_reference, pack_bits_fake, triton=True)


def pack_bits(masks: Sequence[Tensor], *, backend: str = "auto") -> list[Tensor]:
    """Pack boolean masks of any shapes into bits.

    Args:
        masks: L bool tensors of any shapes.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L tensors, shape [ceil(numel / 8)], uint8.

    Raises:
        ArgumentError: If a mask is not bool.
        BackendError: If `backend` is absent.
    """
    masks = list(masks)
    for i, mask in enumerate(masks):
        if mask.dtype != torch.bool:
            raise ArgumentError(f"masks[{i}] must be bool, got {mask.dtype}")
    return OP(masks, backend=backend) if masks else []


def check_bits(bits: Sequence[Tensor], numels: Sequence[int]) -> None:
    """Check that `bits` are packed masks of so many entries each; ArgumentError otherwise."""
    if len(bits) != len(numels):
        raise ArgumentError(f"bits must hold {len(numels)} packed masks, got {len(bits)}")
    for i, (packed, numel) in enumerate(zip(bits, numels, strict=True)):
        if packed.dtype != torch.uint8 or packed.shape != ((numel + 7) // 8,):
            raise ArgumentError(
                f"bits[{i}] must be uint8 [{(numel + 7) // 8}] for {numel} entries, "
                f"got {packed.dtype} {list(packed.shape)}"
            )
