"""CART: the average of the models plus the low-rank parts of their distances to it (Choi et al. 2024).

    theta = theta_avg + scale sum_t SVD_r(theta_t - theta_avg)      for the matrices of transformer blocks
    theta = theta_avg                                               for everything else

The deltas sum to zero, so full rank and scale 0 both give the average, and the base model cancels out. A
sweep over ranks and scales needs one decomposition, at the largest rank: `CartFactors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from taskarith_fast.merging.common import State, check_fraction
from taskarith_fast.ops.lowrank_sum import lowrank_sum
from taskarith_fast.ops.truncated_svd import check_method, truncated_svd


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
                sums = [_Factors.of(b, min(b.origin.shape), svd).sum_to_energy(energy) for b in blocks]
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


class CartFactors:
    """CART's decompositions, made once, for merging at many ranks and scales.

    Decomposing 8 models at 16 % of full rank costs little more than at 8 %; each later rank costs one matrix
    product a matrix, each later scale of the same rank one addition. Memory: ``T r (m + n)`` floats a matrix,
    and the average.
    """

    def __init__(
        self,
        base: State,
        finetuned: Sequence[State],
        *,
        max_rank_ratio: float = 0.16,
        split_qkv: bool = False,
        svd: str = "certified",
    ) -> None:
        """Decompose the distances of all models to their average.

        Args:
            base: The pre-trained model; it gives the keys and the buffers.
            finetuned: T fine-tuned models.
            max_rank_ratio: The largest `rank_ratio` that `merge` will be asked for, in (0, 1].
            split_qkv: As in `cart`.
            svd: As in `cart`.

        Raises:
            ArgumentError: If a parameter is out of its domain.
            CheckpointError: If the models do not fit together.
        """
        check_fraction("max_rank_ratio", max_rank_ratio)
        check_method(svd)
        self.max_rank_ratio = max_rank_ratio
        self._average = average(base, finetuned)
        self._blocks: list[Block] = []
        self._factors: list[_Factors] = []
        self._sums: tuple[float, list[Tensor]] | None = None
        with torch.no_grad():
            for name, mean in self._average.items():
                if is_cart_matrix(name, mean):
                    for block in blocks_of(mean, finetuned, name, split_qkv):
                        self._factors.append(_Factors.of(block, rank_of(max_rank_ratio, block.origin), svd))
                        self._blocks.append(Block(block.name, block.rows, block.origin, []))

    def merge(self, *, rank_ratio: float = 0.08, scale: float = 1.0) -> dict[str, Tensor]:
        """Merge as `cart` does, from the stored factors; the sums of the last `rank_ratio` are kept for other
        scales.

        Args:
            rank_ratio: Rank kept, in (0, max_rank_ratio].
            scale: lambda.

        Raises:
            ArgumentError: If a parameter is out of its domain.
        """
        check_fraction("rank_ratio", rank_ratio)
        check_scale(scale)
        if rank_ratio > self.max_rank_ratio:
            raise ArgumentError(f"rank_ratio must be at most max_rank_ratio={self.max_rank_ratio}, got {rank_ratio}")
        merged = {name: tensor.clone() for name, tensor in self._average.items()}
        if scale == 0 or rank_ratio == 1.0:
            return merged
        with torch.no_grad():
            if self._sums is None or self._sums[0] != rank_ratio:
                pairs = zip(self._blocks, self._factors, strict=True)
                self._sums = (rank_ratio, [f.sum_to_rank(rank_of(rank_ratio, b.origin)) for b, f in pairs])
            write_blocks(merged, self._blocks, self._sums[1], scale)
        return merged


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
        factors = _Factors.of(block, rank_of(rank_ratio, block.origin), svd)
    return block.origin, factors.left, factors.right


@dataclass(frozen=True)
class _Factors:
    """Truncated deltas of all tasks: left [T, m, r] is U S, right [T, r, n] is Vh."""

    left: Tensor
    right: Tensor

    @staticmethod
    def of(block: Block, rank: int, svd: str) -> _Factors:
        deltas = torch.empty(len(block.models), *block.origin.shape, device=block.origin.device)
        for delta, model in zip(deltas, block.models, strict=True):
            torch.sub(model, block.origin, out=delta)
        u, s, vh = truncated_svd(deltas, rank, svd=svd)
        return _Factors(u.mul_(s[:, None]), vh)

    def sum_to_rank(self, rank: int) -> Tensor:
        return self.left[:, :, :rank].transpose(0, 1).flatten(1) @ self.right[:, :rank].flatten(0, 1)

    def sum_to_energy(self, energy: float) -> Tensor:
        """The sum with a rank of its own for each task; the factors must be of full rank."""
        kept = self.left.double().square().sum(1).cumsum(1)  # [T, r]
        short = kept < energy * kept[:, -1:]
        keep = torch.cat([torch.ones_like(short[:, :1]), short[:, :-1]], 1)  # the one that reaches it is kept
        return (self.left * keep[:, None]).transpose(0, 1).flatten(1) @ self.right.flatten(0, 1)
