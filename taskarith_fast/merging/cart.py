"""CART: the average of the models plus the low-rank parts of their distances to it (Choi et al. 2024).

    theta = theta_avg + scale sum_t SVD_r(theta_t - theta_avg)      for the matrices of transformer blocks
    theta = theta_avg                                               for everything else

The deltas sum to zero, so full rank and scale 0 both give the average, and the base model cancels out. A
sweep over ranks and scales needs one decomposition, at the largest rank: `CartFactors`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.arithmetic import average
from taskarith_fast.merging.common import State, check_fraction
from taskarith_fast.ops.lowrank_sum import lowrank_sum
from taskarith_fast.ops.truncated_svd import check_method, truncated_svd
from taskarith_fast.ops.weighted_sum import weighted_sum

_BLOCK_WORDS = ("attn", "attention", "mlp", "intermediate.", "output.dense")
_OTHER_WORDS = ("ln", "norm", "bias")
_FUSED_WORDS = ("in_proj_weight", "qkv.weight")
_GROUP = 8  # matrices summed at once: enough work for every thread, little memory


def is_cart_matrix(name: str, tensor: Tensor) -> bool:
    """Tell whether CART decomposes this tensor: a matrix inside a transformer block.

    For open_clip's names this is the official test, "attn" or "mlp" in the name and neither "ln" nor "bias";
    the other words cover the layers of timm's and Hugging Face's ViTs that carry neither.

    Args:
        name: The tensor's key.
        tensor: The tensor; only its shape and dtype are read.
    """
    return tensor.is_floating_point() and cart_cut(name, tuple(tensor.shape)) == "tensor"


def cart_cut(name: str, shape: tuple[int, ...], parameters: Mapping[str, Any] | None = None) -> str:
    """What CART must see at once of a floating tensor: a matrix it decomposes is one "tensor", the rest averages."""
    inside = any(word in name for word in _BLOCK_WORDS) and not any(word in name for word in _OTHER_WORDS)
    return "tensor" if inside and len(shape) == 2 and 0 not in shape else "element"


def cart(
    base: State,
    finetuned: Sequence[State],
    *,
    rank_ratio: float = 0.08,
    scale: float = 1.0,
    energy: float | None = None,
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
    _check_scale(scale)
    check_method(svd)
    if energy is not None:
        check_fraction("energy", energy)
    merged = average(base, finetuned)
    if scale == 0 or (energy or rank_ratio) == 1.0:
        return merged
    names = [name for name in base if is_cart_matrix(name, base[name])]
    with torch.no_grad():
        for i in range(0, len(names), _GROUP):
            group = names[i : i + _GROUP]
            blocks = [b for name in group for b in _blocks(merged[name], finetuned, name, split_qkv)]
            if energy is None:
                ranks = [_rank(rank_ratio, b.average) for b in blocks]
                models = [[b.models[t] for b in blocks] for t in range(len(finetuned))]
                sums = lowrank_sum([b.average for b in blocks], models, ranks, svd=svd)
            else:
                sums = [_Factors.of(b, min(b.average.shape), svd).sum_to_energy(energy) for b in blocks]
            _write(merged, blocks, sums, scale)
    return merged


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
        self._blocks: list[_Block] = []
        self._factors: list[_Factors] = []
        self._sums: tuple[float, list[Tensor]] | None = None
        with torch.no_grad():
            for name, mean in self._average.items():
                if is_cart_matrix(name, mean):
                    for block in _blocks(mean, finetuned, name, split_qkv):
                        self._factors.append(_Factors.of(block, _rank(max_rank_ratio, block.average), svd))
                        self._blocks.append(_Block(block.name, block.rows, block.average, []))

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
        _check_scale(scale)
        if rank_ratio > self.max_rank_ratio:
            raise ArgumentError(f"rank_ratio must be at most max_rank_ratio={self.max_rank_ratio}, got {rank_ratio}")
        merged = {name: tensor.clone() for name, tensor in self._average.items()}
        if scale == 0 or rank_ratio == 1.0:
            return merged
        with torch.no_grad():
            if self._sums is None or self._sums[0] != rank_ratio:
                pairs = zip(self._blocks, self._factors, strict=True)
                self._sums = (rank_ratio, [f.sum_to_rank(_rank(rank_ratio, b.average)) for b, f in pairs])
            _write(merged, self._blocks, self._sums[1], scale)
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
        (block,) = _blocks(mean, finetuned, name, split_qkv=False)
        factors = _Factors.of(block, _rank(rank_ratio, block.average), svd)
    return block.average, factors.left, factors.right


@dataclass(frozen=True)
class _Block:
    """A matrix that is decomposed: rows of a tensor, in float32."""

    name: str
    rows: slice
    average: Tensor  # [m, n]
    models: list[Tensor]  # T of [m, n]


@dataclass(frozen=True)
class _Factors:
    """Truncated deltas of all tasks: left [T, m, r] is U S, right [T, r, n] is Vh."""

    left: Tensor
    right: Tensor

    @staticmethod
    def of(block: _Block, rank: int, svd: str) -> _Factors:
        deltas = torch.empty(len(block.models), *block.average.shape, device=block.average.device)
        for delta, model in zip(deltas, block.models, strict=True):
            torch.sub(model, block.average, out=delta)
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


def _blocks(mean: Tensor, finetuned: Sequence[State], name: str, split_qkv: bool) -> list[_Block]:
    models = [model[name].detach() for model in finetuned]
    if mean.dtype != torch.float32:  # a rounded mean would leave its rounding in every delta
        models = [model.float() for model in models]
        mean = weighted_sum(models[:1], [[model] for model in models], [1.0 / len(models)] * len(models))[0]
    rows = mean.shape[0]
    split = split_qkv and any(word in name for word in _FUSED_WORDS) and rows % 3 == 0
    step = rows // 3 if split else rows
    slices = [slice(first, first + step) for first in range(0, rows, step)]
    return [_Block(name, s, mean[s], [model[s] for model in models]) for s in slices]


def _write(merged: dict[str, Tensor], blocks: Sequence[_Block], sums: Sequence[Tensor], scale: float) -> None:
    for block, total in zip(blocks, sums, strict=True):
        merged[block.name][block.rows] = torch.add(block.average, total, alpha=scale).to(merged[block.name].dtype)


def _rank(rank_ratio: float, matrix: Tensor) -> int:
    return max(1, int(rank_ratio * min(matrix.shape)))


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ArgumentError(f"scale must be finite, got {scale}")
