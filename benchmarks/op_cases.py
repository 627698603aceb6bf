"""Cases that are operators: ours, the published recipe, and the best that could be written without this package."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks import costs, peers_ties, recipes_sparsify, shapes, spectra
from benchmarks.contest import Contest
from taskarith_fast import ops
from taskarith_fast.ops.dare import stream


def weighted_sum(layers: list[tuple[int, ...]], tasks: int) -> Contest:
    """Task arithmetic with scale 0.3."""
    base, finetuned = shapes.models(layers, tasks)
    scale = torch.full((tasks,), 0.3)

    def published() -> list[Tensor]:
        """Task vectors one by one, summed, scaled, added: what the papers' TaskVector class does."""
        total = [torch.zeros_like(b) for b in base]
        for model in finetuned:
            total = [t + (f - b) for t, f, b in zip(total, model, base, strict=True)]
        return [b + 0.3 * t for b, t in zip(base, total, strict=True)]

    def foreach() -> list[Tensor]:
        """The same with torch's multi-tensor functions, updating one accumulator in place."""
        total = torch._foreach_mul(base, 1 - 0.3 * tasks)
        for model in finetuned:
            torch._foreach_add_(total, model, alpha=0.3)
        return list(total)

    return Contest(
        ours={"taskarith_fast": lambda: ops.weighted_sum(base, finetuned, scale)},
        baselines={"published recipe (torch)": published, "torch foreach": foreach},
        bytes_moved=costs.merge_bytes(_numel(base), tasks),
    )


def ties(layers: list[tuple[int, ...]], tasks: int) -> Contest:
    """TIES at density 0.2: thresholds and merge, in memory. The floor reads every model twice and writes once."""
    arrays = shapes.flat_models(layers, tasks)
    base, *finetuned = (shapes.split(x, layers) for x in arrays)
    numel = arrays[0].numel()
    kept = int(0.2 * numel)
    baselines = {"published recipe (torch)": lambda: peers_ties.published_ties(base, finetuned, 0.2, 1.0)}
    if base[0].is_cpu:
        flat = [x.numpy() for x in arrays]
        baselines["numpy, two threads"] = lambda: peers_ties.numpy_ties(flat[0], flat[1:], 0.2, 1.0)

    def ours() -> list[Tensor]:
        thresholds, cutoffs = ops.kth_magnitude(base, finetuned, kept)
        return ops.ties_merge(base, finetuned, thresholds, cutoffs)

    return Contest(
        ours={"taskarith_fast": ours},
        baselines=baselines,
        bytes_moved=costs.merge_bytes(numel, tasks, reads=2),
    )


def lowrank_sum(spectrum: str) -> Contest:
    """CART's sum for one block of ViT-B/32 and 8 tasks at 8 % of full rank: 32 of the model's 384 decompositions."""
    layers = shapes.vit_b32_matrices(1)
    deltas = [[spectra.matrix(spectrum, m, n, 10 * t + i) for i, (m, n) in enumerate(layers)] for t in range(8)]
    base = [torch.zeros(s) for s in layers]
    ranks = [int(0.08 * min(s)) for s in layers]

    return Contest(
        ours={
            "certified": lambda: ops.lowrank_sum(base, deltas, ranks),
            "exact": lambda: ops.lowrank_sum(base, deltas, ranks, svd="exact"),
        },
        baselines={"torch.linalg.svd": lambda: sum_of_svds(base, deltas, ranks)},
    )


def sum_of_svds(base: list[Tensor], tasks: Iterable[list[Tensor]], ranks: list[int]) -> list[Tensor]:
    """The published sum: every matrix of every task's deltas, shaped like `base`, decomposed whole, cut off, added."""
    sums = [torch.zeros_like(b) for b in base]
    for deltas in tasks:
        for total, delta, rank in zip(sums, deltas, ranks, strict=True):
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            total += (u[:, :rank] * s[:rank]) @ vh[:rank]
    return sums


_TASKS = 8


Layers = list[tuple[int, ...]]


def _vit(layers: Layers | None) -> tuple[list[Tensor], list[list[Tensor]], int]:
    base, finetuned = shapes.models(layers or shapes.vit_b32_shapes(), _TASKS)
    return base, finetuned, _numel(base)


def _numel(tensors: list[Tensor]) -> int:
    return sum(x.numel() for x in tensors)


def dare(layers: Layers | None = None) -> Contest:
    """DARE at density 0.1, rescaled, added with scale 0.3."""
    base, finetuned, numel = _vit(layers)
    streams = [[stream(0, t, str(i)) for i in range(len(base))] for t in range(_TASKS)]
    return Contest(
        ours={"taskarith_fast": lambda: ops.dare(base, finetuned, [3.0] * _TASKS, streams, density=0.1)},
        baselines={"published recipe (torch)": lambda: recipes_sparsify.dare(base, finetuned, 0.1, 0.3)},
        bytes_moved=costs.merge_bytes(numel, _TASKS),
    )


def breadcrumbs(layers: Layers | None = None) -> Contest:
    """Breadcrumbs by rows: the largest 10 % removed, the next 20 % kept."""
    base, finetuned, numel = _vit(layers)
    rows = [b.shape[-1] for b in base]
    removed, kept = [int(n * 0.1) for n in rows], [int(n * 0.2) for n in rows]
    return Contest(
        ours={"taskarith_fast": lambda: ops.breadcrumbs(base, finetuned, [0.4] * _TASKS, removed, kept)},
        baselines={"published recipe (torch)": lambda: recipes_sparsify.breadcrumbs(base, finetuned, 0.2, 0.1, 0.4)},
        bytes_moved=costs.merge_bytes(numel, _TASKS),
    )


def tall_mask(layers: Layers | None = None) -> Contest:
    """The masks of eight tasks, one bit a weight."""
    base, finetuned, numel = _vit(layers)
    return Contest(
        ours={"taskarith_fast": lambda: ops.tall_mask(base, finetuned, [0.4] * _TASKS)},
        baselines={"published recipe (torch)": lambda: recipes_sparsify.tall_masks(base, finetuned, 0.4)},
        bytes_moved=costs.merge_bytes(numel, _TASKS, written=_TASKS / 8),
    )


def consensus(layers: Layers | None = None) -> Contest:
    """The merge of what at least two tasks need."""
    base, finetuned, numel = _vit(layers)
    return Contest(
        ours={"taskarith_fast": lambda: ops.consensus(base, finetuned, [0.4] * _TASKS, threshold=2)},
        baselines={"published recipe (torch)": lambda: recipes_sparsify.consensus(base, finetuned, 0.4, 2)},
        bytes_moved=costs.merge_bytes(numel, _TASKS),
    )


def fisher_merge(layers: Layers | None = None) -> Contest:
    """Eight models by eight Fishers, MergeLM's floor rule."""
    _, finetuned, numel = _vit(layers)
    random = shapes.generator(1)
    fishers = [[torch.randn(x.shape, generator=random).square_().mul_(1e-5) for x in task] for task in finetuned]
    shares = [1 / _TASKS] * _TASKS
    return Contest(
        ours={"taskarith_fast": lambda: ops.fisher_merge(finetuned, fishers, shares, floor_rule="add")},
        baselines={"published recipe (torch)": lambda: recipes_sparsify.fisher(finetuned, fishers, shares, 1e-6)},
        bytes_moved=4 * numel * (2 * _TASKS + 1),
    )


def weighted_sum_backward(layers: Layers | None = None) -> Contest:
    """AdaMerging's gradient by one coefficient a task and tensor."""
    base, finetuned, numel = _vit(layers)
    grads = [torch.randn(b.shape, generator=shapes.generator(i)) for i, b in enumerate(base)]
    return Contest(
        ours={"taskarith_fast": lambda: ops.weighted_sum_backward(grads, base, finetuned)},
        baselines={
            "autograd through stacked task vectors": lambda: recipes_sparsify.coefficient_gradient(
                grads, base, finetuned
            )
        },
        bytes_moved=costs.coefficient_gradient_bytes(numel, _TASKS),
    )
