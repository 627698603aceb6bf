"""fisher_diag_elementwise_ in Triton: sums over tokens, squared; groups of samples added in a fixed order after."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, ENTRIES = 16, 128
PROGRAMS = 512  # about as many as keep a large GPU busy


@triton.jit
def _fisher_diag_elementwise_kernel(
    grad_y, x, partial, samples, tokens, width, groups, TOKENS: tl.constexpr, ENTRIES: tl.constexpr
):
    columns = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    total = tl.zeros([ENTRIES], tl.float32)
    for b in range(tl.program_id(1), samples, groups):
        terms = tl.zeros([TOKENS, ENTRIES], tl.float32)
        for s in range(0, tokens, TOKENS):
            token = s + tl.arange(0, TOKENS)[:, None]
            inside = (token < tokens) & (columns[None, :] < width)
            i = (tl.cast(b, tl.int64) * tokens + token) * width + columns[None, :]
            term = tl.load(grad_y + i, mask=inside, other=0.0).to(tl.float32)
            if x is not None:
                term *= tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
            terms += term
        gradient = tl.sum(terms, 0)
        total += gradient * gradient
    tl.store(partial + tl.program_id(1).to(tl.int64) * width + columns, total, mask=columns < width)


def fisher_diag_elementwise__triton(fisher: Tensor, grad_y: Tensor, x: Tensor | None, scale: float) -> None:
    """The op's own signature; fisher is [d], grad_y and x [B, S, d]."""
    samples, tokens, width = grad_y.shape
    if grad_y.numel() == 0:
        return
    strips = triton.cdiv(width, ENTRIES)
    groups = min(samples, triton.cdiv(PROGRAMS, strips))
    partial = fisher.new_empty((groups, width))
    with torch.cuda.device_of(fisher):
        _fisher_diag_elementwise_kernel[(strips, groups)](
            grad_y.contiguous(), None if x is None else x.contiguous(), partial, samples, tokens, width, groups,
            TOKENS, ENTRIES,
        )  # fmt: skip
    fisher.add_(partial.sum(0), alpha=scale)


COMPILED = [
    (
        "_fisher_diag_elementwise_kernel",
        {
            "grad_y": f"*{kind}:16", **({"x": f"*{kind}:16"} if multiplied else {}), "partial": "*fp32:16",
            "samples": "i32", "tokens": "i32", "width": "i32:16", "groups": "i32",
        },
        {**({} if multiplied else {"x": None}), "TOKENS": TOKENS, "ENTRIES": ENTRIES},
    )
    for kind in ("fp32", "bf16", "fp16")
    for multiplied in (True, False)
]  # fmt: skip
