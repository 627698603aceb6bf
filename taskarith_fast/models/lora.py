r"""Linearised low-rank adaptation of query and value projections: LoRA with its input factor frozen.

    y[rows] += s (x A^T) B^T,    A [r, k] frozen, B [d, r] trained from 0                       # W += s B A

L-LoRA (Tang 2024) trains the first-order expansion of LoRA about (A_0, B_0 = 0):

    s (B A_0 + B_0 (A - A_0)) x = s B A_0 x,

in which A has no effect: the expansion IS low-rank adaptation with A frozen, and needs no JVP. As TaLoS's code
has it: r = 16, s = alpha = 32 (not alpha / r), A Xavier-uniform divided by sqrt(r).

No [o, k] update exists during training: the two thin products are added where the dense one is computed, in
every model whose dense layers go through `ops.linear`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.fast import use_fast_linear
from taskarith_fast.models.parameters import linear_layer_names
from taskarith_fast.ops.linear import Compute, around_linear

_FUSED = re.compile(r"\b(in_proj_weight|qkv\.weight)$")
_SEPARATE = re.compile(r"\b(q_proj|v_proj|query|value|q_lin|v_lin|(SelfAttention|EncDecAttention)\.[qv])\.weight$")


@dataclass(frozen=True)
class Target:
    """Rows of one weight that get an update of their own."""

    name: str
    """Name of the weight, shape [o, k]."""
    start: int
    """First row."""
    stop: int
    """Row after the last."""
    fused: bool
    """Whether the weight holds query, key and value together."""


def low_rank_targets(model: nn.Module) -> tuple[Target, ...]:
    """The query and value rows of every attention layer, in the model's order.

    Rows [0, d) and [2 d, 3 d) of a fused weight [3 d, k]; the whole of separate query and value weights.

    Raises:
        ArgumentError: If no parameter has a name of an attention layer of ours, open_clip, timm or transformers.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    targets = []
    for name in linear_layer_names(shapes, "p1"):
        rows = shapes[name][0]
        if _FUSED.search(name):
            targets += [Target(name, 0, rows // 3, True), Target(name, rows - rows // 3, rows, True)]
        elif _SEPARATE.search(name):
            targets.append(Target(name, 0, rows, False))
    if not targets:
        raise ArgumentError(f"model must have query and value weights, got names such as {next(iter(shapes))}")
    return tuple(targets)


class LowRankAdapter(nn.Module):
    """Factors for every query and value projection of a model, with B = 0: at first they change nothing.

    The adapter holds no weight of the model; while `applied` is entered, it adds its part to the model's products.

    Args:
        model: The model; its plain dense layers are routed through `ops.linear`, in place.
        rank: Rank r of every update.
        scale: Factor s.
        seed: Seed of the factors A.

    Attributes:
        targets: What is adapted.
        a, b: The factors [r, k] and [rows, r], one of each a target.

    Raises:
        ArgumentError: As `low_rank_targets`, or if the rank exceeds a side of a weight.
    """

    def __init__(self, model: nn.Module, *, rank: int = 16, scale: float = 32.0, seed: int = 0) -> None:
        super().__init__()
        self.rank, self.scale = rank, scale
        self.targets = low_rank_targets(use_fast_linear(model))
        weights = dict(model.named_parameters())
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for target in self.targets:
            rows, columns = target.stop - target.start, weights[target.name].shape[1]
            if rank > min(rows, columns):
                raise ArgumentError(f"rank must be at most {min(rows, columns)} for {target.name}, got {rank}")
            a = nn.init.xavier_uniform_(torch.empty(rank, columns), generator=generator) / rank**0.5
            device = weights[target.name].device
            self.a.append(nn.Parameter(a.to(device), requires_grad=False))
            self.b.append(nn.Parameter(torch.zeros(rows, rank, device=device)))
        # By identity: a layer hands its weight to ops.linear, not its name. In a list, so that it is not ours.
        self._indices: dict[int, list[int]] = {}
        for index, target in enumerate(self.targets):
            self._indices.setdefault(id(weights[target.name]), []).append(index)
        self._unseen = set(range(len(self.targets)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapted weights."""
        return tuple(dict.fromkeys(target.name for target in self.targets))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Add the updates to the model's products inside the block, in forward passes and what they recompute."""
        with around_linear(self._around):
            yield

    def check_seen(self) -> None:
        """Refuse a model of which a product has not been adapted in the passes made so far.

        Raises:
            ArgumentError: Naming the weight.
        """
        if self._unseen:
            name = self.targets[min(self._unseen)].name
            raise ArgumentError(f"{name}: its product must go through ops.linear to be adapted, but it does not")

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state with W[rows] + s B A in place of W[rows], computed in float64 and rounded once."""
        merged = dict(state)
        for target, a, b in zip(self.targets, self.a, self.b, strict=True):
            weight = merged[target.name]
            if weight is state[target.name]:
                merged[target.name] = weight = weight.clone()
            update = self.scale * (b.detach().double() @ a.detach().double())
            rows = weight[target.start : target.stop]
            rows.copy_(rows.double() + update.to(rows.device))
        return merged

    def _around(self, compute: Compute, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = compute(x, weight, bias)
        for index in self._indices.get(id(weight), ()):
            target = self.targets[index]
            update = compute(compute(x, self.a[index], None) * self.scale, self.b[index], None)
            # In place: no pass of a dense layer reads its own output again.
            y[..., target.start : target.stop].add_(update)
            self._unseen.discard(index)
        return y


class AdaptedTangent(nn.Module):
    """The update of one weight by an adapter as a tangent for ``linearize``: s B A in its rows, zeros elsewhere.

    The network's first-order expansion in B alone, about B = 0: with A frozen it is linear in what is trained.

    Args:
        adapter: Its factors are shared, not copied.
        weight: The weight, shape [o, k].
        name: Name of the weight.
    """

    def __init__(self, adapter: LowRankAdapter, weight: Tensor, name: str) -> None:
        super().__init__()
        own = [index for index, target in enumerate(adapter.targets) if target.name == name]
        self.shape, self.scale = tuple(weight.shape), adapter.scale
        self.rows = [slice(adapter.targets[index].start, adapter.targets[index].stop) for index in own]
        self.a = nn.ParameterList(adapter.a[index] for index in own)
        self.b = nn.ParameterList(adapter.b[index] for index in own)

    def forward(self) -> Tensor:
        """The tangent, shape [o, k]."""
        tangent = self.b[0].new_zeros(self.shape)
        for rows, a, b in zip(self.rows, self.a, self.b, strict=True):
            tangent[rows] = self.scale * (b @ a)
        return tangent

    def parts(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained factors with names for an optimizer."""
        for rows, b in zip(self.rows, self.b, strict=True):
            yield f"{name}.b[{rows.start}:{rows.stop}]", b
