"""The optimizer of a fine-tuning run, and the clipping of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.objective import Objective
from taskarith_fast.loops.recipes import RECIPES, clip_over
from taskarith_fast.loops.schedule import learning_rate
from taskarith_fast.masks import Masks
from taskarith_fast.optim import SparseAdamW
from taskarith_fast.tangent import LinearizedModel


def make_optimizer(objective: Objective, config: FinetuneConfig, masks: Masks | None = None) -> torch.optim.Optimizer:
    """AdamW with one group for the encoder and one for heads that are trained, each with its "peak" rate.

    With masks it is `SparseAdamW`, whose state and steps are those of the selected entries alone. Of a linearized
    encoder tau is stepped, and what decays is theta_0 + tau, as published.
    """
    encoder = objective.encoder
    linear = encoder if isinstance(encoder, LinearizedModel) else None
    if masks is not None and linear is not None:  # what an empty mask belongs to has no tangent
        own = {name: masks.packed(name) for name in linear.names}
        masks = Masks(own, {name: masks.shape(name) for name in own})
    if masks is not None:
        named = encoder.named_parameters() if linear is None else linear.named_tau()
        optimizer: torch.optim.Optimizer = SparseAdamW(
            named, masks=masks, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        optimizer.param_groups[0]["peak"] = config.lr
    else:
        optimizer = _adamw(objective, config)
    if linear is not None and config.weight_decay and RECIPES[config.recipe].kind != "low_rank":
        optimizer.register_step_post_hook(_decay_of_the_start(linear, masks, config.weight_decay))
    return optimizer


def _adamw(objective: Objective, config: FinetuneConfig) -> torch.optim.AdamW:
    encoder = [p for module in (objective.encoder, objective.adapter) if module for p in module.parameters()]
    groups: list[dict[str, Any]] = [{"params": [p for p in encoder if p.requires_grad], "peak": config.lr}]
    if config.train_head:
        peak = config.lr if config.head_lr is None else config.head_lr
        groups.append({"params": list(objective.heads.parameters()), "peak": peak})
    return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def _decay_of_the_start(linear: LinearizedModel, masks: Masks | None, weight_decay: float) -> Callable[..., None]:
    """After each step, tau -= lr weight_decay theta_0 where tau is trained: AdamW itself decays tau alone.

    Together they shrink theta_0 + tau toward zero, which is what decays in the published code.
    """
    start = {name: linear.model.get_parameter(name).detach() for name in linear.names}
    if masks is not None:
        masks = masks.to(next(iter(start.values())).device)

    @torch.no_grad()
    def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        factor = -optimizer.param_groups[0]["lr"] * weight_decay
        for name, tau in linear.named_tau():
            theta = start[name] if masks is None else torch.where(masks[name], start[name], 0.0)
            tau.add_(theta, alpha=factor)

    return decay


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, config: FinetuneConfig) -> None:
    """Give every group the learning rate of a step."""
    for group in optimizer.param_groups:
        group["lr"] = rate(step, steps, config, group["peak"])


def rate(step: int, steps: int, config: FinetuneConfig, peak: float) -> float:
    """The learning rate of a step for a group with this peak."""
    return learning_rate(step, steps=steps, lr=peak, warmup=config.warmup, schedule=config.schedule)


def clip_gradients(optimizer: Any, config: FinetuneConfig) -> None:
    """Scale the gradients so that their norm is at most ``config.clip``."""
    if config.clip is None:
        return
    if RECIPES[config.recipe].kind == "masks":
        optimizer.clip_grad_norm_(config.clip, over=clip_over(config))
        return
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], config.clip)
