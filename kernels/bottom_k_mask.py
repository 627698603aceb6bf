"""bottom_k_mask in Triton: three counts of digits over all tensors, one of ties by block, then the bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from taskarith_fast.kernels._radix import BINS, PASSES, TIES, TILE, TILES, choose_digit, digit_counts
from torch import Tensor


@triton.jit
def _candidates(scores, excluded, i, numel, FLIP: tl.constexpr):
    """Keys whose smallest is chosen first, -0 like 0, and which of the entries compete."""
    competes = i < numel
    score = tl.load(scores + i, mask=competes, other=0.0)
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF) ^ FLIP
    if excluded is not None:
        byte = tl.load(excluded + (i >> 3), mask=competes, other=0).to(tl.int32)
        competes = competes & (((byte >> (i & 7).to(tl.int32)) & 1) == 0)
    return keys.to(tl.uint32, bitcast=True), competes


@triton.jit
def _count_digits_kernel(
    scores, excluded, prefix, counts, numel, number, FLIP: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * (TILE * TILES)
    known = tl.load(prefix)
    found = tl.zeros([BINS], tl.int32)
    for tile in range(TILES):
        keys, competes = _candidates(scores, excluded, begin + tile * TILE + tl.arange(0, TILE), numel, FLIP)
        found += digit_counts(keys, known, competes, number)
    tl.atomic_add(counts + tl.arange(0, BINS), found.to(tl.int64), mask=found > 0)


@triton.jit
def _count_ties_kernel(scores, excluded, prefix, left, equal, ties, numel, FLIP: tl.constexpr, TIES: tl.constexpr):
    if tl.load(left) < tl.load(equal):
        block = tl.program_id(0).to(tl.int64)
        keys, competes = _candidates(scores, excluded, block * TIES + tl.arange(0, TIES), numel, FLIP)
        tl.store(ties + block, tl.sum(((keys == tl.load(prefix).to(tl.uint32)) & competes).to(tl.int64)))


@triton.jit
def _bottom_k_mask_kernel(scores, excluded, prefix, left, before, bits, numel, FLIP: tl.constexpr, TIES: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    keys, competes = _candidates(scores, excluded, block * TIES + tl.arange(0, TIES), numel, FLIP)
    limit = tl.load(prefix).to(tl.uint32)
    tied = ((keys == limit) & competes).to(tl.int32)
    rank = tl.load(before + block) + tl.cumsum(tied, 0)
    chosen = ((keys < limit) & competes) | ((tied != 0) & (rank <= tl.load(left)))
    byte = block * (TIES // 8) + tl.arange(0, TIES // 8)
    flags = tl.reshape(chosen.to(tl.int32), (TIES // 8, 8)) << tl.arange(0, 8)[None, :]
    tl.store(bits + byte, tl.sum(flags, 1).to(tl.uint8), mask=byte * 8 < numel)


def bottom_k_mask_triton(scores: list[Tensor], excluded: list[Tensor], k: int, largest: bool) -> list[Tensor]:
    """The op's own signature; of equal keys those of the first tensors and positions are chosen."""
    bits = [s.new_empty((s.numel() + 7) // 8, dtype=torch.uint8) for s in scores]
    parts = [
        (s.contiguous(), excluded[i].contiguous() if excluded else None, bits[i])
        for i, s in enumerate(scores)
        if s.numel()
    ]
    if not parts:
        return bits
    counts = bits[0].new_zeros((1, BINS.value), dtype=torch.int64)
    prefix, equal = counts.new_zeros(1), counts.new_zeros(1)
    left = torch.full_like(prefix, k)
    flip = 0x7FFFFFFF if largest else -0x80000000
    with torch.cuda.device_of(bits[0]):
        for number in range(PASSES):
            for s, banned, _ in parts:
                _count_digits_kernel[(triton.cdiv(s.numel(), TILE * TILES),)](
                    s, banned, prefix, counts, s.numel(), number, flip, TILE, TILES
                )
            choose_digit(counts, prefix, left, equal, number)
        blocks = [triton.cdiv(s.numel(), TIES) for s, _, _ in parts]
        ties = counts.new_zeros(sum(blocks))
        for (s, banned, _), here in zip(parts, ties.split(blocks), strict=True):
            _count_ties_kernel[(len(here),)](s, banned, prefix, left, equal, here, s.numel(), flip, TIES)
        before = ties.cumsum(0) - ties
        for (s, banned, target), here in zip(parts, before.split(blocks), strict=True):
            _bottom_k_mask_kernel[(len(here),)](s, banned, prefix, left, here, target, s.numel(), flip, TIES)
    return bits


def _compiled(name: str, tables: tuple[str, ...], excluded: bool, **constants: int) -> tuple[str, dict, dict]:
    signature = {"scores": "*fp32:16", "numel": "i32"} | dict.fromkeys(tables, "*i64")
    signature |= {"_bottom_k_mask_kernel": {"bits": "*u8:16"}, "_count_digits_kernel": {"number": "i32"}}.get(name, {})
    if excluded:
        return name, signature | {"excluded": "*u8:16"}, {"FLIP": -0x80000000, **constants}
    return name, signature, {"FLIP": 0x7FFFFFFF, "excluded": None, **constants}


COMPILED = [
    compiled
    for excluded in (False, True)
    for compiled in (
        _compiled("_count_digits_kernel", ("prefix", "counts"), excluded, TILE=TILE, TILES=TILES),
        _compiled("_count_ties_kernel", ("prefix", "left", "equal", "ties"), excluded, TIES=TIES),
        _compiled("_bottom_k_mask_kernel", ("prefix", "left", "before"), excluded, TIES=TIES),
    )
]
