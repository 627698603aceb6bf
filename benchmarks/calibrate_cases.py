"""Cases of Fisher passes and calibration on whole models: ViT-B/32 of open_clip with random weights, 16 images."""

from __future__ import annotations

from typing import Any

from benchmarks.contest import Contest

_CLASSES = 10
# Multiplications and additions of one forward pass through ViT-B/32's dense layers, an image.
_FORWARD = 2 * (50 * 12 * 12 * 768 * 768 + 49 * 3072 * 768)


def fisher_pass(batch: int = 16, depth: int = 12) -> Contest:
    """One Fisher pass over all 87 M weights, against the forward and backward pass of training in stock torch."""
    import torch

    from taskarith_fast.loops.fisher import Squares, add_squares
    from taskarith_fast.loops.scoring import Scoring

    model, head, images = _model(batch, depth)
    squares = Squares(dict(model.named_parameters()))

    def ours() -> None:
        add_squares(model, [images], squares, scoring=Scoring(labels="sampled"), head=head)

    def published() -> None:
        """One backward pass a sample, squares accumulated parameter by parameter."""
        log_p = head(model(images)).log_softmax(-1).max(-1).values
        for b in range(batch):
            model.zero_grad()
            log_p[b].backward(retain_graph=b + 1 < batch)
            for name, p in model.named_parameters():
                if p.grad is not None:
                    squares.fisher[name].addcmul_(p.grad, p.grad)

    def training() -> None:
        model.zero_grad()
        torch.nn.functional.cross_entropy(head(model(images)), torch.zeros(batch, dtype=torch.long)).backward()

    return Contest(
        ours={"taskarith_fast": ours},
        baselines={"stock torch forward + backward": training, "published recipe": published},
        flops=3 * batch * _FORWARD * depth // 12,
    )


def calibrate_round() -> Contest:
    """One round of TaLoS on one batch: soft masks, Fisher pass, choice among 86 M weights."""
    import torch

    from taskarith_fast.loops.calibrate import calibrate

    batch = 16
    model, head, images = _model(batch, 12)

    def rounds(count: int) -> None:
        calibrate(model, [images], head=head, rounds=count)

    def training() -> None:
        model.zero_grad()
        torch.nn.functional.cross_entropy(head(model(images)), torch.zeros(batch, dtype=torch.long)).backward()

    return Contest(
        ours={"one round": lambda: rounds(1), "four rounds": lambda: rounds(4)},
        baselines={"stock torch forward + backward": training},
        flops=3 * batch * _FORWARD,
    )


def _model(batch: int, depth: int) -> tuple[Any, Any, Any]:
    import torch
    from open_clip.transformer import VisionTransformer

    from taskarith_fast.models import random_head

    torch.manual_seed(0)
    model = VisionTransformer(224, 32, 768, depth, 12, 4.0, output_dim=512).eval()
    return model, random_head(512, _CLASSES, seed=0).requires_grad_(False), torch.randn(batch, 3, 224, 224)
