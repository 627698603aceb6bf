"""pack_bits in Triton: a byte of eight flags."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BYTES = 512


@triton.jit
def _pack_bits_kernel(mask, bits, numel, BYTES: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)[None, :]
    entry = byte[:, None] * 8 + bit
    flags = tl.load(mask + entry, mask=entry < numel, other=0).to(tl.int32)
    tl.store(bits + byte, tl.sum(flags << bit, 1).to(tl.uint8), mask=byte * 8 < numel)


def pack_bits_triton(masks: list[Tensor]) -> list[Tensor]:
    """The op's own signature."""
    out = []
    for mask in masks:
        bits = mask.new_empty(((mask.numel() + 7) // 8,), dtype=torch.uint8)
        if mask.numel():
            with torch.cuda.device_of(mask):
                grid = (triton.cdiv(bits.numel(), BYTES),)
                _pack_bits_kernel[grid](mask.contiguous().view(torch.uint8), bits, mask.numel(), BYTES)
        out.append(bits)
    return out


COMPILED = [("_pack_bits_kernel", {"mask": "*u8:16", "bits": "*u8:16", "numel": "i32"}, {"BYTES": BYTES})]
