"""unpack_bits in Triton: eight flags of a byte."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BYTES = 512


@triton.jit
def _unpack_bits_kernel(bits, mask, numel, BYTES: tl.constexpr):
    byte = (tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES))[:, None]
    bit = tl.arange(0, 8)[None, :]
    packed = tl.load(bits + byte, mask=byte * 8 < numel, other=0).to(tl.int32)
    entry = byte * 8 + bit
    tl.store(mask + entry, ((packed >> bit) & 1).to(tl.uint8), mask=entry < numel)


def unpack_bits_triton(bits: list[Tensor], numels: list[int]) -> list[Tensor]:
    """The op's own signature."""
    out = []
    for packed, numel in zip(bits, numels, strict=True):
        mask = packed.new_empty((numel,), dtype=torch.uint8)
        if numel:
            with torch.cuda.device_of(packed):
                _unpack_bits_kernel[(triton.cdiv(packed.numel(), BYTES),)](packed.contiguous(), mask, numel, BYTES)
        out.append(mask.view(torch.bool))
    return out


COMPILED = [("_unpack_bits_kernel", {"bits": "*u8:16", "mask": "*u8:16", "numel": "i32"}, {"BYTES": BYTES})]
