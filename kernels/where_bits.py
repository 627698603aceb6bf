"""where_bits in Triton: values move as integers, whatever they mean."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BYTES = 256
_WORDS = {2: torch.int16, 4: torch.int32}


@triton.jit
def _where_bits_kernel(bits, on, off, out, numel, BYTES: tl.constexpr):
    byte = (tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES))[:, None]
    bit = tl.arange(0, 8)[None, :]
    chosen = (tl.load(bits + byte, mask=byte * 8 < numel, other=0).to(tl.int32) >> bit) & 1
    entry = byte * 8 + bit
    inside = entry < numel
    a, b = tl.load(on + entry, mask=inside, other=0), tl.load(off + entry, mask=inside, other=0)
    tl.store(out + entry, tl.where(chosen != 0, a, b), mask=inside)


def where_bits_triton(bits: list[Tensor], on: list[Tensor], off: list[Tensor]) -> list[Tensor]:
    """The op's own signature."""
    out = []
    for packed, a, b in zip(bits, on, off, strict=True):
        chosen = torch.empty_like(b, memory_format=torch.contiguous_format)
        if b.numel():
            words = [x.contiguous().view(-1).view(_WORDS[x.element_size()]) for x in (a, b, chosen)]
            with torch.cuda.device_of(b):
                grid = (triton.cdiv(packed.numel(), BYTES),)
                _where_bits_kernel[grid](packed.contiguous(), *words, b.numel(), BYTES)
        out.append(chosen)
    return out


COMPILED = [
    (
        "_where_bits_kernel",
        {"bits": "*u8:16", **{n: f"*{kind}:16" for n in ("on", "off", "out")}, "numel": "i32"},
        {"BYTES": BYTES},
    )
    for kind in ("i32", "i16")
]
