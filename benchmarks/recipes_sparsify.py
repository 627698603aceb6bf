"""The published recipes of the sparsifiers and of Fisher merging in plain torch: the baselines.

Each takes flat lists (base, [T][L] fine-tuned) and returns the merged tensors, or masks. They keep the
algorithm and the data flow of the papers' code (task vectors first, then masks, then the sum), without its
bookkeeping.
"""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = list[Tensor]


def task_vectors(base: Tensors, finetuned: list[Tensors]) -> list[Tensors]:
    """tau_t = theta_t - theta_0, for every task."""
    return [[f - b for f, b in zip(model, base, strict=True)] for model in finetuned]


def add_scaled(base: Tensors, deltas: list[Tensors], scale: float) -> Tensors:
    """theta_0 + scale * sum_t tau_t."""
    totals = [d.clone() for d in deltas[0]]
    for task in deltas[1:]:
        torch._foreach_add_(totals, task)
    return [b + scale * t for b, t in zip(base, totals, strict=True)]


def dare(base: Tensors, finetuned: list[Tensors], density: float, scale: float) -> Tensors:
    """MergeLM: a Bernoulli mask a tensor, rescale, task arithmetic."""
    deltas = task_vectors(base, finetuned)
    for task in deltas:
        for i, delta in enumerate(task):
            mask = torch.bernoulli(torch.full_like(delta, 1 - density))
            task[i] = (delta * (1 - mask)).div_(density)
    return add_scaled(base, deltas, scale)


def breadcrumbs(base: Tensors, finetuned: list[Tensors], density: float, outliers: float, scale: float) -> Tensors:
    """Breadcrumbs: per row a topk to remove, then a topk to keep."""
    deltas = task_vectors(base, finetuned)
    for task in deltas:
        for i, delta in enumerate(task):
            n = delta.shape[-1]
            magnitude = delta.abs()
            top = magnitude.topk(int(n * outliers), dim=-1, sorted=False).indices
            magnitude.scatter_(-1, top, 0.0)
            kept = magnitude.topk(int(n * density), dim=-1, sorted=False).indices
            mask = torch.zeros_like(delta).scatter_(-1, kept, 1.0)
            task[i] = delta * mask
    return add_scaled(base, deltas, scale)


def tall_masks(base: Tensors, finetuned: list[Tensors], tall_lambda: float) -> list[list[Tensor]]:
    """tall_masks: |theta_0 - theta_t| > lambda |theta_MT - theta_t|, as bool; packing is left out."""
    multi = add_scaled(base, task_vectors(base, finetuned), 1.0)
    return [
        [(b - f).abs() > (m - f).abs() * tall_lambda for b, f, m in zip(base, model, multi, strict=True)]
        for model in finetuned
    ]


def consensus(base: Tensors, finetuned: list[Tensors], tall_lambda: float, threshold: int) -> Tensors:
    """Masks of all tasks, their votes, and the sum of task vectors where they suffice."""
    masks = tall_masks(base, finetuned, tall_lambda)
    totals = add_scaled([torch.zeros_like(b) for b in base], task_vectors(base, finetuned), 1.0)
    out = []
    for i, b in enumerate(base):
        votes = torch.stack([task[i] for task in masks]).sum(0)
        out.append(b + totals[i] * (votes >= threshold))
    return out


def fisher(finetuned: list[Tensors], fishers: list[Tensors], shares: list[float], floor: float) -> Tensors:
    """MergeLM: stack models and Fishers of a tensor, add the floor, divide the weighted sums."""
    merged = []
    for i in range(len(finetuned[0])):
        models = torch.stack([task[i] for task in finetuned])
        weights = torch.stack([task[i] for task in fishers]) + floor
        c = torch.tensor(shares).reshape(-1, *[1] * finetuned[0][i].dim())
        merged.append((c * weights * models).sum(0) / (c * weights).sum(0))
    return merged


def coefficient_gradient(grads: Tensors, base: Tensors, finetuned: list[Tensors]) -> Tensor:
    """AdaMerging: autograd through the materialised merge of stacked task vectors."""
    stacked = [torch.stack(task) for task in zip(*task_vectors(base, finetuned), strict=True)]
    weights = torch.full((len(finetuned), len(base)), 0.3, device=base[0].device, requires_grad=True)
    merged = [
        b + (weights[:, i].reshape(-1, *[1] * b.dim()) * s).sum(0)
        for i, (b, s) in enumerate(zip(base, stacked, strict=True))
    ]
    return torch.autograd.grad(merged, weights, grads)[0]
