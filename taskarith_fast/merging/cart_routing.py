"""CART with the task known: every task's model is a shared origin and a low-rank part (Choi et al. 2024, eq. 5).

    theta_t = origin + scale SVD_r(theta_t - origin)        for the matrices of transformer blocks
    theta_t = origin + scale (theta_t - origin)             for everything else, as the paper's code does

The origin is the average of the models or, for comparison, the pre-trained model. A task then costs r (m + n + 1)
numbers a matrix instead of m n.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import check_choice
from taskarith_fast.merging.cart_blocks import (
    GROUP,
    Block,
    blocks_of,
    check_scale,
    cut_blocks,
    is_cart_matrix,
    rank_of,
    write_blocks,
)
from taskarith_fast.merging.common import State, check_compatible, check_fraction, copied, in_order_of
from taskarith_fast.ops import weighted_sum
from taskarith_fast.ops.lowrank_sum import lowrank_sum
from taskarith_fast.ops.truncated_svd import check_method


def cart_routing(
    base: State,
    finetuned: Sequence[State],
    *,
    rank_ratio: float = 0.08,
    scale: float = 1.0,
    origin: str = "average",
    split_qkv: bool = False,
    svd: str = "certified",
) -> list[dict[str, Tensor]]:
    """Make one model for each task: the origin and the low-rank part of the task's distance to it.

    Args:
        base: The pre-trained model; with origin="average" it cancels out, and gives the keys and the buffers.
        finetuned: T fine-tuned models.
        rank_ratio: Rank kept, ``r = max(1, int(rank_ratio min(m, n)))``, in (0, 1]; 1, with scale 1, gives the
            fine-tuned models to rounding.
        scale: lambda.
        origin: "average" or "base".
        split_qkv: As in `cart`.
        svd: As in `cart`.

    Returns:
        T states in the key order of `base`. Matrices are computed in float32 and rounded once, all else in float64.

    Raises:
        ArgumentError: If a parameter is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    check_fraction("rank_ratio", rank_ratio)
    check_scale(scale)
    check_choice("origin", origin, ("average", "base"))
    check_method(svd)
    keys = check_compatible(base, finetuned)
    matrices = [k for k in keys if is_cart_matrix(k, base[k])]
    rest = [k for k in keys if k not in set(matrices)]
    with torch.no_grad():
        states = [copied(base, rest + matrices) for _ in finetuned]
        for t, state in enumerate(states):
            state.update(zip(rest, _interpolate(base, finetuned, rest, t, scale, origin), strict=True))
            state.update({k: torch.empty_like(base[k], memory_format=torch.contiguous_format) for k in matrices})
        for first in range(0, len(matrices), GROUP):
            group = matrices[first : first + GROUP]
            blocks = [b for k in group for b in _blocks(base, finetuned, k, origin, split_qkv)]
            ranks = [rank_of(rank_ratio, b.origin) for b in blocks]
            for t, state in enumerate(states):
                parts = lowrank_sum([b.origin for b in blocks], [[b.models[t] for b in blocks]], ranks, svd=svd)
                write_blocks(state, blocks, parts, scale)
    return [in_order_of(base, state) for state in states]


def _interpolate(
    base: State, finetuned: Sequence[State], names: Sequence[str], task: int, scale: float, origin: str
) -> list[Tensor]:
    """origin + scale (theta_t - origin) as one sum from the base, rounded once."""
    share = (1 - scale) / len(finetuned) if origin == "average" else 0.0
    weights = [share + scale * (t == task) for t in range(len(finetuned))]
    return weighted_sum([base[k] for k in names], [[m[k] for k in names] for m in finetuned], weights)


def _blocks(base: State, finetuned: Sequence[State], name: str, origin: str, split_qkv: bool) -> list[Block]:
    if origin == "average":
        weights = [1.0 / len(finetuned)] * len(finetuned)
        mean = weighted_sum([base[name].detach()], [[m[name].detach()] for m in finetuned], weights)[0]
        return blocks_of(mean, finetuned, name, split_qkv)
    return cut_blocks(base[name].detach().float(), [m[name].detach().float() for m in finetuned], name, split_qkv)
