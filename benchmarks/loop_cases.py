"""Cases that are loops, not operators: a step of the demo's fine-tuning, CART's grid of ranks and scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import shapes
from benchmarks.contest import Contest


def finetune_step() -> Contest:
    """Forward, backward, clip, fused AdamW: 32 images of 56 px through 8 blocks of ViT-S/14."""
    import torch
    import torch.nn.functional as F

    from benchmarks.stock_vit import StockVit
    from taskarith_fast.models import VisionTransformer, VitConfig
    from taskarith_fast.ops.linear import linear_route

    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 56, 56), torch.randint(0, 10, (32,))
    config = VitConfig(image_size=56, depth=8, final_norm=False)

    def step_of(model: torch.nn.Module, route: str) -> Callable[[], Any]:
        head = torch.nn.Linear(384, 10).requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def step() -> None:
            with linear_route(route):
                F.cross_entropy(head(model(images)), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    return Contest(
        ours={"taskarith_fast": step_of(VisionTransformer(config), "auto")},
        baselines={
            "stock torch": step_of(StockVit(), "auto"),
            "ours by F.linear": step_of(VisionTransformer(config), "linear"),
        },
        flops=3 * 2 * 32 * 17 * 8 * 12 * 384 * 384,
    )


def cart_grid() -> Contest:
    """One block of ViT-B/32, 8 tasks: 20 ranks up to 16 % x 10 scales, against one merge at 16 %."""
    import torch

    from taskarith_fast.merging.cart import cart
    from taskarith_fast.merging.cart_factors import CartFactors

    base, finetuned = shapes.models(shapes.vit_b32_matrices(1), 8)
    names = ["attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
    states = [dict(zip(names, tensors, strict=True)) for tensors in (base, *finetuned)]

    def grid() -> None:
        factors = CartFactors(states[0], states[1:], max_rank_ratio=0.16)
        for rank in range(1, 21):
            for scale in range(1, 11):
                factors.merge(rank_ratio=0.008 * rank, scale=0.3 * scale)

    def decompositions() -> None:
        CartFactors(states[0], states[1:], max_rank_ratio=0.16)

    def recipe() -> list[torch.Tensor]:
        """The published merge: torch.linalg.svd for each task and matrix, cut, summed."""
        merged = []
        for i, b in enumerate(base):
            mean = torch.stack([model[i] for model in finetuned]).mean(0)
            rank = int(0.16 * min(b.shape))
            for model in finetuned:
                u, s, vh = torch.linalg.svd(model[i] - mean, full_matrices=False)
                mean = mean + (u[:, :rank] * s[:rank]) @ vh[:rank]
            merged.append(mean)
        return merged

    return Contest(
        ours={"decompositions alone": decompositions, "the whole grid, 200 merges": grid},
        baselines={
            "one merge at 8 %": lambda: cart(states[0], states[1:], rank_ratio=0.08),
            "one merge at 16 %": lambda: cart(states[0], states[1:], rank_ratio=0.16),
            "published recipe, one merge": recipe,
        },
    )
