"""CART: the average of the models plus the low-rank parts of their distances to it (Choi et al. 2024).

    theta = theta_avg + scale sum_t SVD_r(theta_t - theta_avg)      for the matrices of transformer blocks
    theta = theta_avg                                               for everything else

The deltas sum to zero, so full rank and scale 0 both give the average, and the base model cancels out. A
sweep over ranks and scales needs one decomposition, at the largest rank: `cart_factors.CartFactors`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.merging.arithmetic import average
from taskarith_fast.merging.cart_blocks import (
    GROUP,
    Block,
    blocks_of,
    check_scale,
    is_cart_matrix,
    rank_of,
    write_blocks,
)
from taskarith_fast.merging.cart_factors import Factors
from taskarith_fast.merging.common import State, check_fraction
from taskarith_fast.ops.lowrank_sum import lowrank_sum
from taskarith_fast.ops.truncated_svd import check_method


def cart(
    base: State,
    finetuned: Sequence[State],
    *,
    rank_ratio: float = 0.08,
    scale: float = 1.0,
    energy: float | None = None,
    order: str = "largest",
    split_qkv: bool = False,
    svd: str = "certified",
) -> dict[str, Tensor]:
    """Merge the blocks' matrices by ``theta_avg + scale sum_t SVD_r(theta_t - theta_avg)``, average the rest.

    Args:
        base: The pre-trained model; it cancels out, and gives the keys and the buffers.
        finetuned: T fine-tuned models.
        rank_ratio: Rank kept, ``r = max(1, int(rank_ratio min(m, n)))``, in (0, 1]; 1 gives the average.
        scale: lambda, not divided by T; 0 gives the average.
        energy: If given, r is instead the least rank, for each matrix and task, whose squared singular values
            are at least this fraction of their sum, in (0, 1]; `rank_ratio` is then not used.
        order: "largest" keeps the r largest singular values; "smallest" the r smallest, the paper's figure 2.
        split_qkv: Decompose the query, key and value of a fused projection one by one; by default it is one
            matrix.
        svd: "certified" (excess residual bounded by 1e-5) or "exact" (float64), see `ops.truncated_svd`.

    Returns:
        The merged state, in the key order of `base`. Matrices are computed in float32 and rounded once.

    Raises:
        ArgumentError: If a parameter is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    check_fraction("rank_ratio", rank_ratio)
    check_scale(scale)
    check_method(svd)
    check_choice("order", order, ("largest", "smallest"))
    if energy is not None:
        check_fraction("energy", energy)
        if order == "smallest":
            raise ArgumentError("energy must be None with order='smallest': it counts from the largest singular value")
    merged = average(base, finetuned)
    if scale == 0 or (energy or rank_ratio) == 1.0:
        return merged
    names = [name for name in base if is_cart_matrix(name, base[name])]
    with torch.no_grad():
        for i in range(0, len(names), GROUP):
            group = names[i : i + GROUP]
            blocks = [b for name in group for b in blocks_of(merged[name], finetuned, name, split_qkv)]
            if energy is None:
                models = [[b.models[t] for b in blocks] for t in range(len(finetuned))]
                sums = _sums(blocks, models, rank_ratio, order, svd)
            else:
                sums = [Factors.of(b, min(b.origin.shape), svd).sum_to_energy(energy) for b in blocks]
            write_blocks(merged, blocks, sums, scale)
    return merged


def _sums(
    blocks: Sequence[Block], models: Sequence[Sequence[Tensor]], rank_ratio: float, order: str, svd: str
) -> list[Tensor]:
    """sum_t SVD_r of every block; the deltas add up to 0, so the smallest make up for what the largest others add."""
    ranks = [rank_of(rank_ratio, block.origin) for block in blocks]
    origins = [block.origin for block in blocks]
    if order == "largest":
        return lowrank_sum(origins, models, ranks, svd=svd)
    sums = [torch.zeros_like(origin) for origin in origins]
    for i, (origin, rank) in enumerate(zip(origins, ranks, strict=True)):
        others = min(origin.shape) - rank
        if others:
            sums[i] = lowrank_sum([origin], [[m[i]] for m in models], others, svd=svd)[0].neg_()
    return sums


def low_rank_deltas(
    name: str, mean: Tensor, finetuned: Sequence[State], *, rank_ratio: float, svd: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose the distances of all models to their average, for one matrix.

    Args:
        name: The matrix.
        mean: Its average over the models, shape [m, n], as `average` gives it.
        finetuned: T fine-tuned models.
        rank_ratio, svd: As in `cart`.

    Returns:
        The average in float32, shape [m, n]; U S, shape [T, m, r]; Vh, shape [T, r, n].
    """
    with torch.no_grad():
        (block,) = blocks_of(mean, finetuned, name, split_qkv=False)
        factors = Factors.of(block, rank_of(rank_ratio, block.origin), svd)
    return block.origin, factors.left, factors.right
