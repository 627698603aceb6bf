"""CART's models along the rank, in both orders, merged or routed, around either origin: from one decomposition.

    merged:  theta = origin + scale sum_t SVD_r(theta_t - origin)
    routed:  theta_t = origin + scale SVD_r(theta_t - origin)

for the matrices of transformer blocks; all other tensors are as `cart` and `cart_routing` have them, which means for
the origin theta_0 theta_0 + scale sum_t tau_t. Tensors are made when they are looked up, so that a sweep over ranks
holds no state but the one in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.merging.cart_blocks import Block, blocks_of, check_scale, cut_blocks, is_cart_matrix, rank_of
from taskarith_fast.merging.cart_factors import Factors
from taskarith_fast.merging.common import State, check_compatible, check_fraction
from taskarith_fast.ops.truncated_svd import check_method
from taskarith_fast.ops.weighted_sum import weighted_sum
from taskarith_fast.progress import SILENT, Progress

ORIGINS = ("average", "base")
ORDERS = ("largest", "smallest")


class CartSpectrum:
    """The decompositions of T models' distances to an origin.

    Memory: T r (m + n) floats a matrix, for the largest rank r.

    Args:
        base: The pre-trained model theta_0.
        finetuned: T fine-tuned models; they are kept.
        origin: "average" of the models (CART), or "base": low-rank task vectors, for comparison (CART, figure 1).
        max_rank_ratio: The largest rank ratio that will be asked for; 1 is needed for the order "smallest".
        split_qkv, svd: As in `cart`.
        progress: Shows a bar.

    Raises:
        ArgumentError: If an argument is out of its domain.
        CheckpointError: If the models do not fit together.
    """

    def __init__(
        self,
        base: State,
        finetuned: Sequence[State],
        *,
        origin: str = "average",
        max_rank_ratio: float = 1.0,
        split_qkv: bool = False,
        svd: str = "certified",
        progress: Progress = SILENT,
    ) -> None:
        check_choice("origin", origin, ORIGINS)
        check_fraction("max_rank_ratio", max_rank_ratio)
        check_method(svd)
        check_compatible(base, finetuned)
        self.origin, self.max_rank_ratio = origin, max_rank_ratio
        self.base, self.finetuned = base, list(finetuned)
        self._parts: dict[str, list[tuple[Block, Factors]]] = {}
        names = [name for name in base if is_cart_matrix(name, base[name])]
        with torch.no_grad():
            for name in progress.track(names, "decompositions"):
                blocks = self._blocks(name, split_qkv)
                self._parts[name] = [
                    (Block(name, b.rows, b.origin, []), Factors.of(b, rank_of(max_rank_ratio, b.origin), svd))
                    for b in blocks
                ]

    def state(
        self, *, rank_ratio: float, scale: float = 1.0, order: str = "largest", task: int | None = None
    ) -> Mapping[str, Tensor]:
        """The model at a rank; its tensors are computed when they are looked up.

        Args:
            rank_ratio: Rank kept, ``r = max(1, int(rank_ratio min(m, n)))``, in [0, max_rank_ratio]; 0 gives
                the origin.
            scale: lambda.
            order: "largest" keeps the strongest singular triplets, "smallest" the weakest.
            task: Route to one task's model; None merges all.

        Raises:
            ArgumentError: If an argument is out of its domain.
        """
        check_choice("order", order, ORDERS)
        check_scale(scale)
        if not 0 <= rank_ratio <= self.max_rank_ratio:
            raise ArgumentError(f"rank_ratio must be in [0, {self.max_rank_ratio}], got {rank_ratio}")
        if order == "smallest" and self.max_rank_ratio < 1:
            raise ArgumentError(f"order 'smallest' needs max_rank_ratio=1, got {self.max_rank_ratio}")
        if task is not None and not 0 <= task < len(self.finetuned):
            raise ArgumentError(f"task must be from 0 to {len(self.finetuned) - 1}, got {task}")
        return _State(self, rank_ratio, scale, order, task)

    def _blocks(self, name: str, split_qkv: bool) -> list[Block]:
        if self.origin == "average":
            mean = self._weighted(name, [1 / len(self.finetuned)] * len(self.finetuned))
            return blocks_of(mean, self.finetuned, name, split_qkv)
        models = [model[name].detach().float() for model in self.finetuned]
        return cut_blocks(self.base[name].detach().float(), models, name, split_qkv)

    def _weighted(self, name: str, weights: Sequence[float]) -> Tensor:
        """base + sum_t w_t (finetuned_t - base) for one tensor."""
        models = [[model[name].detach()] for model in self.finetuned]
        return weighted_sum([self.base[name].detach()], models, weights)[0]


@dataclass(frozen=True)
class _State(Mapping[str, Tensor]):
    """One model of the spectrum, computed tensor by tensor."""

    spectrum: CartSpectrum
    rank_ratio: float
    scale: float
    order: str
    task: int | None

    def __getitem__(self, name: str) -> Tensor:
        like = self.spectrum.base[name]
        if not like.is_floating_point():
            return like
        with torch.no_grad():
            if name not in self.spectrum._parts:
                return self.spectrum._weighted(name, self._weights())
            rows = [self._rows(block, factors) for block, factors in self.spectrum._parts[name]]
            return torch.cat(rows).to(like.dtype)

    def _rows(self, block: Block, factors: Factors) -> Tensor:
        rank = rank_of(self.rank_ratio, block.origin) if self.rank_ratio else 0
        full = factors.right.shape[1]
        parts = slice(rank) if self.order == "largest" else slice(full - rank, full)
        tasks = slice(None) if self.task is None else slice(self.task, self.task + 1)
        return torch.add(block.origin, factors.sum_of(parts, tasks), alpha=self.scale)

    def _weights(self) -> list[float]:
        """Of the models' distances to the base, for a tensor that is not decomposed."""
        tasks = len(self.spectrum.finetuned)
        scale = self.scale if self.rank_ratio else 0.0
        if self.spectrum.origin == "base":
            return [scale * (self.task in (None, t)) for t in range(tasks)]
        if self.task is None:  # the distances to the average sum to zero
            return [1 / tasks] * tasks
        return [(1 - scale) / tasks + scale * (t == self.task) for t in range(tasks)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.spectrum.base)

    def __len__(self) -> int:
        return len(self.spectrum.base)
