"""Learning-rate search: train once for every rate of a grid, keep the best on validation data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.evaluate import StateEvaluator, load_state
from taskarith_fast.loops.finetune import DivergedError, FinetuneResult, finetune, new_head
from taskarith_fast.loops.linearized import LinearizedEvaluator
from taskarith_fast.progress import SILENT, Progress

ENCODER_LRS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The decades Hazimeh 2024 searches for the encoder; the probe's own grid is in `ProbeConfig.lrs`."""


@dataclass(frozen=True, eq=False)
class LrSearch:
    """What a search over learning rates found."""

    lr: float
    """The best rate; the smallest of equals."""
    scores: dict[float, float | None]
    """Rate -> validation accuracy, None for a run that diverged."""
    result: FinetuneResult
    """The run with the best rate."""


def search_lr(
    encoder: nn.Module,
    head: nn.Module | None,
    task: data.Task,
    config: FinetuneConfig,
    lrs: Sequence[float] = ENCODER_LRS,
    progress: Progress | None = None,
) -> LrSearch:
    """Fine-tune on one task with every learning rate and judge each run on the task's "val" split.

    The paper picks the rate on one named task (Cars) and uses it for all: search on that task, then give the
    others ``dataclasses.replace(config, lr=found.lr)``. Searching on every task picks one for each.

    Args:
        encoder, head, task, config: As for `finetune`; ``config.lr`` is replaced by each rate in turn, and
            with ``config.train_head`` so is ``config.head_lr`` where it is None.
        lrs: The grid, visited from the smallest to the largest.
        progress: Shows bars.

    Raises:
        ArgumentError: If the grid is empty.
        DivergedError: If every run diverges.
    """
    progress = progress or SILENT
    if not lrs:
        raise ArgumentError("lrs must hold at least one learning rate, got none")
    head = head if head is not None else new_head(encoder, task, config.seed)
    scores: dict[float, float | None] = {}
    best: tuple[float, FinetuneResult] | None = None
    classifier = copy.deepcopy(head)
    for lr in progress.track(sorted(lrs), f"learning rate for {task.name}"):
        try:
            result = finetune(encoder, head, task, replace(config, lr=lr), progress)
        except DivergedError:
            scores[lr] = None
            continue
        load_state(classifier, result.head_state)
        scores[lr] = accuracy = _accuracy(encoder, classifier, task, result)
        if best is None or accuracy > (scores[best[0]] or 0.0):
            best = lr, result
    if best is None:
        raise DivergedError(f"lrs must have a rate at which training converges, got {sorted(lrs)}; add smaller ones")
    return LrSearch(best[0], scores, best[1])


def _accuracy(encoder: nn.Module, head: nn.Module, task: data.Task, result: FinetuneResult) -> float:
    """Of what was trained, the encoder or the encoder linearized, on validation images."""
    options: dict[str, Any] = {"image_size": result.config.image_size, "precision": result.config.precision}
    heads, splits = {task.name: head}, {task.name: task.splits["val"]}
    if result.tau is not None:
        return LinearizedEvaluator(encoder, heads, splits, [result.tau], **options)([1.0])[task.name].accuracy
    return StateEvaluator(copy.deepcopy(encoder), heads, splits, **options)(result.state)[task.name].accuracy
