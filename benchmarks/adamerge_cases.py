"""One step of AdaMerging, whole and its merge alone: eight tasks on 8 blocks of ViT-S/14, two images of 56 px."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.contest import Contest

_TASKS = 8

State = dict[str, Any]
Merge = Callable[[Any], State]


def step() -> Contest:
    """Merge, forward and backward for every task, gradient of the coefficients.

    The published code merges anew for every task and differentiates the sum of the losses at the end.
    """
    import torch
    from torch.func import functional_call

    from taskarith_fast.loops.merged_model import MergedModel, mean_entropy
    from taskarith_fast.merging.coefficients import DeltaMerge

    model, base, finetuned = _models()
    weights = torch.full((_TASKS, len(base)), 0.3, dtype=torch.float64)
    heads = {str(t): torch.nn.Linear(384, 10).requires_grad_(False) for t in range(_TASKS)}
    images = {name: [torch.randn(2, 3, 56, 56)] for name in heads}
    merged = MergedModel(model, DeltaMerge(base, finetuned))

    def ours() -> Any:
        with merged.adapting(heads):
            merged.write(weights)
            return merged.gradient(heads, images)

    def autograd(merge: Merge, merges: int) -> Callable[[], Any]:
        def run() -> Any:
            leaf, loss = weights.float().requires_grad_(True), torch.zeros(())
            for t, (name, head) in enumerate(heads.items()):
                if t < merges:
                    theta = merge(leaf)
                loss = loss + mean_entropy(head(functional_call(model, theta, (images[name][0],))))
            return torch.autograd.grad(loss, leaf)

        return run

    return Contest(
        ours={"taskarith_fast": ours},
        baselines={
            "published code": autograd(_summed_merge(base, finetuned), _TASKS),
            "autograd, one product, one merge a step": autograd(_stacked_merge(base, finetuned), 1),
        },
    )


def merge_and_gradient() -> Contest:
    """What a step spends on one merge: materialise it, and differentiate it by the coefficients."""
    import torch

    from taskarith_fast.merging.coefficients import DeltaMerge

    model, base, finetuned = _models()
    weights = torch.full((_TASKS, len(base)), 0.3, dtype=torch.float64)
    grads = {name: torch.randn_like(tensor) for name, tensor in base.items()}
    own, merge = model.state_dict(), DeltaMerge(base, finetuned)

    def ours() -> Any:
        merge.write(weights, own)
        return merge.gradient(grads)

    def autograd(merge: Merge) -> Callable[[], Any]:
        def run() -> Any:
            leaf = weights.float().requires_grad_(True)
            return torch.autograd.grad(list(merge(leaf).values()), leaf, list(grads.values()))

        return run

    size = 4 * sum(tensor.numel() for tensor in base.values())
    return Contest(
        ours={"taskarith_fast": ours},
        baselines={
            "published code": autograd(_summed_merge(base, finetuned)),
            "autograd, one product": autograd(_stacked_merge(base, finetuned)),
        },
        bytes_moved=size * (2 * (_TASKS + 1) + 2),
    )


def _models() -> tuple[Any, State, list[State]]:
    import torch

    from taskarith_fast.models import VisionTransformer, VitConfig

    torch.manual_seed(0)
    model = VisionTransformer(VitConfig(image_size=56, depth=8, final_norm=False)).eval()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetuned = [{n: b + 1e-3 * torch.randn(b.shape) for n, b in base.items()} for _ in range(_TASKS)]
    return model, base, finetuned


def _summed_merge(base: State, finetuned: list[State]) -> Merge:
    """Coefficients [T, L] -> the merged state as the published code has it: task vectors scaled, then summed."""
    deltas = {n: [model[n] - b for model in finetuned] for n, b in base.items()}

    def merge(weights: Any) -> State:
        columns = dict(zip(base, weights.unbind(1), strict=True))
        return {n: sum((c * d for c, d in zip(columns[n], deltas[n], strict=True)), b) for n, b in base.items()}

    return merge


def _stacked_merge(base: State, finetuned: list[State]) -> Merge:
    """The same as one matrix product with task vectors stacked beforehand: the best that autograd can do."""
    import torch

    stacked = {name: torch.stack([model[name] - b for model in finetuned]) for name, b in base.items()}

    def merge(weights: Any) -> State:
        return {n: b + torch.tensordot(weights[:, i], stacked[n], 1) for i, (n, b) in enumerate(base.items())}

    return merge
