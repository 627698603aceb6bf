"""One optimizer step over the weights of ViT-B/32 of which few are trained: ours, torch's dense one, the papers'."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import costs, shapes
from benchmarks.contest import Contest
from taskarith_fast.masks import Masks
from taskarith_fast.optim import SparseAdamW

_OPTIONS = {"lr": 1e-5, "weight_decay": 0.1}


def adamw_step(density: float, rows: bool = False, layers: list[tuple[int, int]] | None = None) -> Contest:
    """AdamW on a `density` of the entries of ViT-B/32's 48 matrices (or `layers`), at random or in whole rows.

    Prints the bytes of the state.
    """
    base, _ = shapes.models(layers or shapes.vit_b32_matrices(12), 0)  # type: ignore[arg-type]
    generator = shapes.generator(1)
    grads = [torch.randn(b.shape, generator=generator).mul_(1e-3) for b in base]
    masks = [torch.rand((*b.shape[:1], 1) if rows else b.shape, generator=generator) < density for b in base]
    masks = [mask.expand(b.shape) for mask, b in zip(masks, base, strict=True)]
    numel = sum(b.numel() for b in base)
    ours, step = _sparse(base, grads, masks)
    step()
    print(f"  state: {ours.state_bytes / numel:.3f} bytes a weight (dense: 8), at most {10 * density + 1 / 32:.3f}")
    return Contest(
        ours={"taskarith_fast": step},
        baselines={
            "torch fused AdamW, dense": _dense(base, grads, fused=True),
            "torch multi-tensor AdamW, dense": _dense(base, grads, foreach=True),
            "masked recipe": _recipe(base, grads, masks),
        },
        bytes_moved=costs.sparse_step_bytes(numel, density, rows=rows),
    )


def _parameters(base: list[Tensor], grads: list[Tensor]) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(b.clone()) for b in base]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = grad
    return parameters


def _sparse(base: list[Tensor], grads: list[Tensor], masks: list[Tensor]) -> tuple[SparseAdamW, Callable[[], object]]:
    named = {str(i): p for i, p in enumerate(_parameters(base, grads))}
    packed = Masks.pack({str(i): mask.contiguous() for i, mask in enumerate(masks)})
    optimizer = SparseAdamW(named.items(), packed, **_OPTIONS)
    return optimizer, optimizer.step


def _dense(base: list[Tensor], grads: list[Tensor], **implementation: bool) -> Callable[[], object]:
    """torch's AdamW: `fused` is apex's, one kernel over chunks of many tensors; `foreach` one for each operation."""
    return torch.optim.AdamW(_parameters(base, grads), **_OPTIONS, **implementation).step


def _recipe(base: list[Tensor], grads: list[Tensor], masks: list[Tensor]) -> Callable[[], object]:
    """The published optimizer: full moments, and a 0/1 score that multiplies decay and step."""
    parameters = _parameters(base, grads)
    scores = [mask.float() for mask in masks]
    moments = [(torch.zeros_like(b), torch.zeros_like(b)) for b in base]
    lr, decay, beta1, beta2, count = _OPTIONS["lr"], _OPTIONS["weight_decay"], 0.9, 0.999, 0

    @torch.no_grad()
    def step() -> None:
        nonlocal count
        count += 1
        size, root = lr / (1 - beta1**count), (1 - beta2**count) ** 0.5
        for p, s, (m, v) in zip(parameters, scores, moments, strict=True):
            assert p.grad is not None
            p.mul_(1 - s * lr * decay)
            m.lerp_(p.grad, 1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            p.sub_(s * size * (m / ((v.sqrt() / root).add_(1e-8))))

    return step
