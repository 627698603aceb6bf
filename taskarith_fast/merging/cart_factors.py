"""CART's decompositions, kept: every rank is a product of stored factors, every scale an addition."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskarith_fast.checkpoint import LazyState, load_state_dict, save_state_dict
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging.arithmetic import average
from taskarith_fast.merging.cart_blocks import Block, blocks_of, check_scale, is_cart_matrix, rank_of
from taskarith_fast.merging.common import State, check_fraction
from taskarith_fast.merging.direction import Direction, Step
from taskarith_fast.ops.truncated_svd import check_method, truncated_svd

_KIND = "cart_factors"


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
        self._factors: list[Factors] = []
        self._last: tuple[float, Direction] | None = None
        with torch.no_grad():
            for name, mean in self._average.items():
                if is_cart_matrix(name, mean):
                    for block in blocks_of(mean, finetuned, name, split_qkv):
                        self._factors.append(Factors.of(block, rank_of(max_rank_ratio, block.origin), svd))
                        self._blocks.append(Block(block.name, block.rows, block.origin, []))

    def merge(self, *, rank_ratio: float = 0.08, scale: float = 1.0) -> dict[str, Tensor]:
        """Merge as `cart` does, from the stored factors; the sums of the last `rank_ratio` are kept for other scales.

        Args:
            rank_ratio: Rank kept, in (0, max_rank_ratio].
            scale: lambda.

        Raises:
            ArgumentError: If a parameter is out of its domain.
        """
        check_scale(scale)
        if self._last is None or self._last[0] != rank_ratio:
            self._last = (rank_ratio, self.direction(rank_ratio))
        return self._last[1].at(scale)

    def direction(self, rank_ratio: float) -> Direction:
        """The merge of this rank at every scale.

        Args:
            rank_ratio: Rank kept, in (0, max_rank_ratio].

        Raises:
            ArgumentError: If it is out of its domain.
        """
        check_fraction("rank_ratio", rank_ratio)
        if rank_ratio > self.max_rank_ratio:
            raise ArgumentError(f"rank_ratio must be at most max_rank_ratio={self.max_rank_ratio}, got {rank_ratio}")
        if rank_ratio == 1.0:
            return Direction(self._average, [])
        pairs = zip(self._blocks, self._factors, strict=True)
        with torch.no_grad():
            steps = [Step(b.name, b.rows, b.origin, f.sum_to_rank(rank_of(rank_ratio, b.origin))) for b, f in pairs]
        return Direction(self._average, steps)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write everything to one safetensors file, atomically.

        Raises:
            CheckpointError: If the file exists and `overwrite` is off, or the path does not end in ``.safetensors``.
        """
        tensors = {f"average/{name}": tensor for name, tensor in self._average.items()}
        for i, (block, factors) in enumerate(zip(self._blocks, self._factors, strict=True)):
            tensors |= {f"left/{i}": factors.left, f"right/{i}": factors.right}
            if self._average[block.name].dtype != torch.float32:
                tensors[f"origin/{i}"] = block.origin
        places = [[block.name, block.rows.start, block.rows.stop] for block in self._blocks]
        facts = {"kind": _KIND, "max_rank_ratio": self.max_rank_ratio, "blocks": places}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_state_dict(contiguous, path, metadata={"taskarith": json.dumps(facts)}, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CartFactors:
        """Open what `save` wrote: the tensors are the file's own pages, shared by all processes that open it.

        Raises:
            CheckpointError: If the file is damaged or another one.
        """
        state = load_state_dict(path)
        facts = json.loads(state.metadata.get("taskarith", "{}")) if isinstance(state, LazyState) else {}
        if facts.get("kind") != _KIND:
            raise CheckpointError(f"{path}: expected factors written by CartFactors.save, got another checkpoint")
        tensors, self = dict(state), cls.__new__(cls)
        self.max_rank_ratio, self._last = facts["max_rank_ratio"], None
        self._average = {n.removeprefix("average/"): t for n, t in tensors.items() if n.startswith("average/")}
        self._blocks, self._factors = [], []
        for i, (name, start, stop) in enumerate(facts["blocks"]):
            origin = tensors.get(f"origin/{i}", self._average[name][start:stop])
            self._blocks.append(Block(name, slice(start, stop), origin, []))
            self._factors.append(Factors(tensors[f"left/{i}"], tensors[f"right/{i}"]))
        return self


@dataclass(frozen=True)
class Factors:
    """Truncated deltas of all tasks: left [T, m, r] is U S, right [T, r, n] is Vh."""

    left: Tensor
    right: Tensor

    @staticmethod
    def of(block: Block, rank: int, svd: str) -> Factors:
        deltas = torch.empty(len(block.models), *block.origin.shape, device=block.origin.device)
        for delta, model in zip(deltas, block.models, strict=True):
            torch.sub(model, block.origin, out=delta)
        u, s, vh = truncated_svd(deltas, rank, svd=svd)
        return Factors(u.mul_(s[:, None]), vh)

    def sum_to_rank(self, rank: int) -> Tensor:
        return self.sum_of(slice(rank))

    def sum_of(self, parts: slice, tasks: slice = slice(None)) -> Tensor:
        """The sum over some tasks of some of their singular triplets, strongest first, shape [m, n]."""
        return self.left[tasks, :, parts].transpose(0, 1).flatten(1) @ self.right[tasks, parts].flatten(0, 1)

    def sum_to_energy(self, energy: float) -> Tensor:
        """The sum with a rank of its own for each task; the factors must be of full rank."""
        kept = self.left.double().square().sum(1).cumsum(1)  # [T, r]
        short = kept < energy * kept[:, -1:]
        keep = torch.cat([torch.ones_like(short[:, :1]), short[:, :-1]], 1)  # the one that reaches it is kept
        return (self.left * keep[:, None]).transpose(0, 1).flatten(1) @ self.right.flatten(0, 1)
