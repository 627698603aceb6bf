"""Cases of linearized models: a training step, many tangents at once, attention with its tangent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import costs
from benchmarks.contest import Contest
from taskarith_fast import ops
from taskarith_fast.models.fast import use_fast_linear
from taskarith_fast.tangent import TangentFeatures, linearize


def _tower(blocks: int) -> nn.Module:
    """The first blocks of open_clip's ViT-B/32 image tower, random weights."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(224, 32, width=768, layers=blocks, heads=12, mlp_ratio=4.0, output_dim=512)


def linearized_step(blocks: int, batch: int = 16) -> Contest:
    """Forward and backward of tau, against ordinary steps and against torch.func.jvp."""
    model = _tower(blocks)
    images, targets = torch.randn(batch, 3, 224, 224), torch.randn(batch, 512)
    lin, jvp = linearize(model), linearize(model, fallback="jvp")
    jvp._walks = False
    fast = use_fast_linear(copy.deepcopy(model))

    def step_of(module: nn.Module) -> Callable[[], Any]:
        parameters = [p for p in module.parameters() if p.requires_grad]

        def step() -> None:
            F.mse_loss(module(images), targets).backward()
            for parameter in parameters:
                parameter.grad = None

        return step

    rows, width = batch * 50, 768
    return Contest(
        ours={"taskarith_fast": step_of(lin)},
        baselines={
            "ordinary step, stock torch": step_of(model),
            "ordinary step, same products": step_of(fast),
            "torch.func.jvp": step_of(jvp),
            "ours under torch.compile": step_of(torch.compile(lin)),
        },
        flops=5 * 2 * rows * 12 * width * width * blocks,
    )


def tangent_features(blocks: int, tasks: int = 8, batch: int = 16) -> Contest:
    """f and T derivatives in one pass; the floor of products is 1 + 2 T to one tangent's 3."""
    model = _tower(blocks)
    images = torch.randn(batch, 3, 224, 224)
    taus = [{n: torch.full_like(p, 1e-3 * (t + 1)) for n, p in model.named_parameters()} for t in range(tasks)]
    lin = linearize(model)

    def one_by_one() -> None:
        with torch.no_grad():
            for tau in taus:
                lin.load_tau(tau)
                lin(images)

    return Contest(
        ours={"taskarith_fast": lambda: TangentFeatures(model, images, taus)},
        baselines={
            "one tangent": lambda: TangentFeatures(model, images, taus[:1]),
            "a linearized model a task": one_by_one,
        },
        flops=(1 + 2 * tasks) * 2 * batch * 50 * 12 * 768 * 768 * blocks,
    )


def linearized_search(blocks: int, tasks: int = 8, batch: int = 8, points: int = 21) -> Contest:
    """Predictions on a batch for every task vector at every scale: one pass, against a linearized forward a point.

    The baselines do not even scale tau: only their forwards count.
    """
    model, head = _tower(blocks), nn.Linear(512, 100).requires_grad_(False)
    images = torch.randn(batch, 3, 224, 224)
    taus = [{n: torch.full_like(p, 1e-3 * (t + 1)) for n, p in model.named_parameters()} for t in range(tasks)]
    grid = torch.kron(torch.eye(tasks), torch.linspace(0, 1, points)[:, None])  # [tasks points, tasks]
    total = {name: sum(tau[name] for tau in taus) for name in taus[0]}
    lin, jvp = linearize(model), linearize(model, fallback="jvp")
    jvp._walks = False

    def forwards(module: Any, count: int) -> Callable[[], Any]:
        def run() -> None:
            with torch.no_grad():
                for _ in range(count):
                    head(module(images)).argmax(-1)

        return run

    return Contest(
        ours={"taskarith_fast": lambda: head(TangentFeatures(model, images, taus).at(grid)).argmax(-1)},
        baselines={
            "21 linearized forwards a task": forwards(lin, tasks * points),
            "21 torch.func.jvp a task": forwards(jvp, tasks * points),
            "the sum alone, one pass": lambda: TangentFeatures(model, images, [total]).at(torch.ones(points, 1)),
        },
        flops=(1 + 2 * tasks) * 2 * batch * 50 * 12 * 768 * 768 * blocks,
    )


def dual_attention(tokens: int, batch: int, heads: int = 12, dtype: torch.dtype = torch.float32) -> Contest:
    """y and dy of attention, against the formula in torch's dense functions."""
    pairs = [torch.randn(batch, heads, tokens, 64).to(dtype) for _ in range(6)]

    def dense() -> tuple[Tensor, Tensor]:
        q, dq, k, dk, v, dv = pairs
        q, dq, k = q / 8, dq / 8, k.transpose(-1, -2)
        p = torch.softmax(q @ k, -1)
        ds = (dq @ k).add_(q @ dk.transpose(-1, -2))
        dp = torch._softmax_backward_data(ds, p, -1, dtype)  # its Jacobian is symmetric
        return p @ v, (dp @ v).add_(p @ dv)

    return Contest(
        ours={"taskarith_fast": lambda: ops.dual_attention(*pairs)},
        baselines={"dense torch": dense},
        flops=costs.dual_attention_flops(batch, heads, tokens, 64),
    )
