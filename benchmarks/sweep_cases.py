"""The arithmetic of a sweep on weights: every point from shared work, against merging each from scratch."""

from __future__ import annotations

from typing import Any

from benchmarks.contest import Contest

RANKS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.14, 0.16, 0.20, 0.24, 0.32)
DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
SCALES = tuple(0.25 * i for i in range(1, 13))


def arithmetic(ranks: int = 12, densities: int = 8, scales: int = 12, depth: int = 8, tasks: int = 8) -> Contest:
    """CART over 12 ranks x 12 scales and TIES over 8 densities x 12 scales, 8 tasks on 8 blocks of ViT-S/14.

    Ours writes all 240 points into a model. The baseline merges one scale of each rank and density, a twelfth of the
    points, so that its time is to be taken twelve times.
    """
    import torch

    from taskarith_fast.merging import merge
    from taskarith_fast.merging.cart_factors import CartFactors
    from taskarith_fast.merging.sharing import direction_of
    from taskarith_fast.models import VisionTransformer, VitConfig

    torch.manual_seed(0)
    model = VisionTransformer(VitConfig(image_size=56, depth=depth, final_norm=False))
    base = {name: t.detach().clone() for name, t in model.state_dict().items()}
    finetuned = [{n: t + _delta(t, seed) for n, t in base.items()} for seed in range(tasks)]
    out = dict(model.state_dict())

    def shared() -> None:
        factors = CartFactors(base, finetuned, max_rank_ratio=max(RANKS[:ranks]))
        directions = (factors.direction(ratio) for ratio in RANKS[:ranks])
        trims = (direction_of(base, finetuned, "ties", density=density) for density in DENSITIES[:densities])
        for lines in (directions, trims):
            for direction in lines:
                for scale in SCALES[:scales]:
                    direction.write(scale, out)

    def alone() -> dict[str, Any]:
        for ratio in RANKS[:ranks]:
            merged = merge(base, finetuned, "cart", rank_ratio=ratio)
        for density in DENSITIES[:densities]:
            merged = merge(base, finetuned, "ties", density=density)
        return merged

    return Contest(ours={"a sweep's shared arithmetic": shared}, baselines={f"ta.merge, one scale of {scales}": alone})


def _delta(tensor: Any, seed: int) -> Any:
    """What fine-tuning changes: noise, and in matrices twenty stronger directions."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(tensor.shape, generator=draw)
    if tensor.dim() == 2:
        rank = min(20, *tensor.shape)
        left = torch.randn(tensor.shape[0], rank, generator=draw)
        noise += 0.3 * left @ torch.randn(rank, tensor.shape[1], generator=draw)
    return 1e-3 * noise
