"""The optimizer of a fine-tuning run, and the clipping of its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.objective import Objective
from taskarith_fast.loops.recipes import RECIPES, clip_over
from taskarith_fast.loops.schedule import learning_rate
from taskarith_fast.masks import Masks
from taskarith_fast.optim import SparseAdamW


def make_optimizer(objective: Objective, config: FinetuneConfig, masks: Masks | None = None) -> torch.optim.Optimizer:
    """AdamW with one group for the encoder and one for heads that are trained, each with its "peak" rate.

    With masks it is `SparseAdamW`, whose state and steps are those of the selected entries alone.
    """
    if masks is not None:
        named = objective.encoder.named_parameters()
        optimizer = SparseAdamW(named, masks=masks, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        optimizer.param_groups[0]["peak"] = config.lr
        return optimizer
    encoder = [p for module in (objective.encoder, objective.adapter) if module for p in module.parameters()]
    groups: list[dict[str, Any]] = [{"params": [p for p in encoder if p.requires_grad], "peak": config.lr}]
    if config.train_head:
        peak = config.lr if config.head_lr is None else config.head_lr
        groups.append({"params": list(objective.heads.parameters()), "peak": peak})
    return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)


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
