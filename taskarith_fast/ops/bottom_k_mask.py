r"""Choose the k lowest scores of a whole model, as packed masks (TaLoS 2025, section 3.2: the least sensitive weights).

All tensors, flattened in list order, compete. Exactly k entries are chosen; of equal scores the one that comes first in
(tensor, index) order goes first, and -0 equals 0. Excluded entries do not compete, whatever their score.
With `largest` the k largest are chosen instead, with the same rule for ties.

Cost: two reads of the scores and one write of an eighth of a byte each. A sample of 2^18 entries brackets the k-th
score, one scan counts what lies outside of the bracket and keeps what lies inside; an unlucky bracket or a great many
ties cost four reads more. A GPU counts digits of 11, 11 and 10 bits, without a word to the host: three reads, one more
where ties have to be dropped, and one that writes the bits. Nothing is concatenated.

Not differentiable: a choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops.count_nonfinite import count_nonfinite
from taskarith_fast.ops.pack_bits import check_bits, pack_bits_fake, pack_bits_reference
from taskarith_fast.ops.unpack_bits import unpack_bits_reference

SCHEMA = "(Tensor[] scores, Tensor[] excluded, int k, bool largest) -> Tensor[]"


def bottom_k_mask_reference(scores: list[Tensor], excluded: list[Tensor], k: int, largest: bool) -> list[Tensor]:
    """Sort all candidates; `excluded` is empty or holds a packed mask for every tensor."""
    if not scores:
        return []
    flat = torch.cat([s.reshape(-1) for s in scores])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    out = unpack_bits_reference(excluded, [s.numel() for s in scores]) if excluded else []
    candidates = (~torch.cat(out) if out else ~chosen).nonzero().reshape(-1)
    order = flat[candidates].sort(stable=True, descending=largest).indices
    chosen[candidates[order[:k]]] = True
    return pack_bits_reference(list(chosen.split([s.numel() for s in scores])))


def bottom_k_mask_fake(scores: list[Tensor], excluded: list[Tensor], k: int, largest: bool) -> list[Tensor]:
    return pack_bits_fake(scores)


OP = define_op("bottom_k_mask", SCHEMA, bottom_k_mask_reference, bottom_k_mask_fake, triton=True)


def bottom_k_mask(
    scores: Sequence[Tensor],
    k: int,
    *,
    excluded: Sequence[Tensor] | None = None,
    largest: bool = False,
    backend: str = "auto",
) -> list[Tensor]:
    """Choose exactly k entries of many tensors by their scores, ties by position.

    Args:
        scores: L tensors of any shapes, float32, none of them NaN; infinities are in order.
        k: How many entries to choose, from 0 to the number that are not excluded.
        excluded: L packed masks of entries that do not compete, shape [ceil(numel / 8)], uint8; None excludes none.
        largest: Choose the largest scores, not the lowest.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        L packed masks, shape [ceil(numel / 8)], uint8: bits of the chosen entries, as pack_bits lays them out.

    Raises:
        ArgumentError: If a score is NaN or not float32, a mask does not fit, or k is out of its domain.
        BackendError: If `backend` is absent.
    """
    scores, excluded = list(scores), list(excluded or [])
    _check_scores(scores)
    numels = [s.numel() for s in scores]
    if excluded:
        check_bits(excluded, numels)
    candidates = sum(numels) - sum(_count_bits(bits, n) for bits, n in zip(excluded, numels, strict=False))
    if not 0 <= k <= candidates:
        raise ArgumentError(f"k must be in [0, {candidates}], the entries that are not excluded; got {k}")
    return OP(scores, [bits.contiguous() for bits in excluded], k, largest, backend=backend) if scores else []


def _check_scores(scores: list[Tensor]) -> None:
    for i, score in enumerate(scores):
        if score.dtype != torch.float32:
            raise ArgumentError(f"scores[{i}] must be float32, got {score.dtype}")
        if score.device != scores[0].device:
            raise ArgumentError(f"scores[{i}] must be on {scores[0].device} like the first, got {score.device}")
    for i, nonfinite in enumerate(count_nonfinite(scores).tolist()):
        if nonfinite and (nan := int(scores[i].isnan().sum())):
            raise ArgumentError(f"scores[{i}] must hold no NaN, got {nan}; look for NaN in the weights or the images")


def _count_bits(bits: Tensor, numel: int) -> int:
    """How many of the first `numel` bits are set."""
    bits = bits.clone()
    if numel % 8:
        bits[-1] &= (1 << (numel % 8)) - 1
    bits -= (bits >> 1) & 0x55  # sums of two, of four, of eight bits
    bits = (bits & 0x33) + ((bits >> 2) & 0x33)
    return int(((bits + (bits >> 4)) & 0x0F).sum())
