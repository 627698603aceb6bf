"""Fine-tuning: AdamW, warm-up and decay, clipped gradients; the loop reads in the order it runs.

The published protocol (Ilharco 2023, Ortiz 2023): decay on ALL trained tensors, toward zero and not toward the
pre-trained model, gradient norm clipped to 1, cross entropy. The head is frozen (Hazimeh 2024, step 2) or
trained along with the encoder (their "full fine-tuning" from a random head). What of the encoder is trained is
the recipe's choice, see `recipes`; the rest gets no gradient, no decay, no optimizer state, and ends
bit-identical. A linearized recipe trains tangents of the encoder in the encoder's place, by the same loop.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops import distributed
from taskarith_fast.loops.combination import check_combination
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.distributed import World
from taskarith_fast.loops.finetune_result import (
    DivergedError,
    FinetuneResult,
    check_finite,
    checked_loss,
    encoder_state,
    state_on_cpu,
)
from taskarith_fast.loops.objective import Objective
from taskarith_fast.loops.optimizer import clip_gradients, make_optimizer, rate, set_rates
from taskarith_fast.loops.recipes import RECIPES, prepare, surroundings
from taskarith_fast.loops.resume import RunCheckpoint, identify
from taskarith_fast.loops.runtime import threads
from taskarith_fast.loops.samples import scores_answers
from taskarith_fast.loops.step_clock import StepClock
from taskarith_fast.loops.stream import stream
from taskarith_fast.masks import Masks
from taskarith_fast.models import Head, random_head
from taskarith_fast.progress import SILENT, Progress

__all__ = ["DivergedError", "FinetuneResult", "finetune", "finetune_joint"]

_CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device


def finetune(
    encoder: nn.Module,
    head: nn.Module | None,
    task: data.Task,
    config: FinetuneConfig | None = None,
    progress: Progress | None = None,
    *,
    masks: Masks | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    in_place: bool = False,
) -> FinetuneResult:
    """Fine-tune an encoder, or a copy of it, on the "train" split of one task.

    Under torchrun every process must call it; each computes its part of every batch, and all return the same.

    Args:
        encoder: Maps images [B, 3, S, S] to features [B, D]; not changed unless `in_place`.
        head: Maps features to logits; not changed. None makes a random one, for ``config.train_head``; a
            model that scores answers needs none.
        task: What to learn; only its "train" split is read.
        config: None for the papers'.
        progress: Shows a bar with the loss and the time left.
        masks: `Masks` of the encoder's parameters, for the recipes "talos", "lota" and "masked": True entries are
            trained, tensors without a mask are frozen.
        checkpoint: A file that holds the state of the run every ``config.checkpoint_every`` steps. If it exists
            the run goes on from it. It is left there: remove it when the result is safe.
        in_place: Train `encoder` itself, which then need not be held twice; it is of no other use afterwards.
            Without effect on a linearized recipe, which expands a copy.

    Returns:
        State dicts and the course of the run. The same arguments give the same bytes on one machine, in one go
        or after a kill.

    Raises:
        ArgumentError: If `head` is None and not to be trained, masks and recipe do not go together, or the
            recipe finds nothing to train.
        CheckpointError: If `checkpoint` is the file of another run.
        DivergedError: If the loss or a weight becomes NaN or infinite.
    """
    config = config or FinetuneConfig()
    if head is None and scores_answers(encoder):
        head = nn.Identity()
    if head is None:
        if not config.train_head:
            raise ArgumentError("head must be given unless config.train_head is true; probe the task first")
        head = new_head(encoder, task, config.seed)
    place = None if checkpoint is None else Path(checkpoint)
    return _train(encoder, {task.name: head}, {task.name: task}, config, progress or SILENT, masks, place, in_place)


def finetune_joint(
    encoder: nn.Module,
    heads: Mapping[str, nn.Module],
    tasks: Mapping[str, data.Task],
    config: FinetuneConfig | None = None,
    progress: Progress | None = None,
) -> FinetuneResult:
    """Fine-tune a copy of an encoder on several tasks at once: the upper bound that merging is held against.

    Every pass takes batch_size // T images of each task, and the loss is the mean of the tasks' losses. With
    ``config.epochs``, the run makes as many passes as the tasks' runs would make one after the other; small
    tasks are repeated.

    Args:
        encoder: Maps images [B, 3, S, S] to features [B, D]; not changed.
        heads: Task name -> head; not changed.
        tasks: Task name -> task.
        config: None for the papers', with a recipe that needs no masks.
        progress: Shows a bar with the loss and the time left.

    Raises:
        ArgumentError: If a task has no head, there is no task, or the batch is smaller than the number of
            tasks.
        DivergedError: If the loss or a weight becomes NaN or infinite.
    """
    config = config or FinetuneConfig()
    missing = [name for name in tasks if name not in heads]
    if missing:
        raise ArgumentError(f"heads must have one for every task, but lacks {', '.join(missing)}")
    if not 1 <= len(tasks) <= config.batch_size:
        raise ArgumentError(f"tasks must number from 1 to batch_size={config.batch_size}, got {len(tasks)}")
    return _train(encoder, {name: heads[name] for name in tasks}, tasks, config, progress or SILENT)


def _train(
    encoder: nn.Module,
    heads: Mapping[str, nn.Module],
    tasks: Mapping[str, data.Task],
    config: FinetuneConfig,
    progress: Progress,
    masks: Masks | None = None,
    checkpoint: Path | None = None,
    in_place: bool = False,
) -> FinetuneResult:
    with distributed.joined(config.device) as world, threads(config.threads), seeded(config.seed, world.device):
        check_combination(config, masks, checkpoint, world)
        identity = {} if checkpoint is None else identify(encoder, heads, tasks, config, masks, world.size)
        run = None if checkpoint is None else RunCheckpoint(checkpoint, identity, config.checkpoint_every)
        # A function of its own: what it wraps for several processes must be gone when they part.
        shown = progress if distributed.is_main() else SILENT
        return _run(encoder, heads, tasks, config, shown, masks, run, world, in_place)


def _run(
    encoder: nn.Module,
    heads: Mapping[str, nn.Module],
    tasks: Mapping[str, data.Task],
    config: FinetuneConfig,
    progress: Progress,
    masks: Masks | None,
    run: RunCheckpoint | None,
    world: World,
    in_place: bool,
) -> FinetuneResult:
    start = time.perf_counter()

    # Model: a copy unless it is to be changed itself, with gradients only where the recipe wants them.
    copied = not in_place or RECIPES[config.recipe].linearized
    prepared = prepare((copy.deepcopy(encoder) if copied else encoder).to(world.device).train(), config, masks)
    classifiers = [copy.deepcopy(head).to(world.device).requires_grad_(config.train_head) for head in heads.values()]
    objective = Objective(prepared.encoder, classifiers, prepared.adapter, config)
    shared = world.wrap(objective, config.sharding)

    # Optimizer, and the state of an earlier process of this run.
    optimizer = make_optimizer(objective, config, masks)
    done, losses = (0, []) if run is None else run.load(objective, optimizer)

    # Data: an endless stream of batches for each task.
    skip = done * config.accumulation
    streams = [stream(encoder, task.splits["train"], config, len(tasks), world, skip) for task in tasks.values()]
    steps = config.total_steps(sum(len(task.splits["train"]) for task in tasks.values()))

    clock, snapshots = StepClock(world.device), {}
    passes = surroundings(prepared, config, masks, world.size, optimizer)
    with passes, progress.stage(f"finetune {' + '.join(tasks)}", steps) as stage:
        stage.advance(done)
        for step in range(done, steps):
            clock.start()
            set_rates(optimizer, step, steps, config)
            loss = torch.zeros((), device=world.device)
            for turn in range(1, config.accumulation + 1):
                # In all passes of the first step, in which a wrapper learns the graph, and the last one of others.
                with distributed.averaging(shared, step == done or turn == config.accumulation):
                    part = shared([next(images) for images in streams]) / config.accumulation
                    part.backward()
                loss += part.detach()
            clock.lap("forward_backward")
            clip_gradients(optimizer, config)
            optimizer.step()
            optimizer.zero_grad()
            clock.lap("step")
            losses.append(loss)
            note = checked_loss(world.mean(loss), step, config) if step % _CHECK_EVERY == 0 else None
            if step + 1 in config.snapshots:
                snapshots[step + 1] = {name: x.clone() for name, x in encoder_state(prepared)[0].items()}
            if run is not None:
                run.save(step + 1, objective, optimizer, losses, world)
            stage.advance(note=note)

    del optimizer  # whose state is as large as two results
    state, tau = encoder_state(prepared)
    check_finite({name: state[name] for name in prepared.names}, config)
    head_states = {name: state_on_cpu(head) for name, head in zip(heads, classifiers, strict=True)}
    history = {
        "loss": world.mean(torch.stack(losses)).tolist(),
        "lr": [rate(step, steps, config, config.lr) for step in range(steps)],
    }
    seconds = time.perf_counter() - start
    adapter = None if prepared.adapter is None else prepared.adapter.cpu()
    return FinetuneResult(
        state, head_states, history, config, prepared.names, seconds, clock.medians(), adapter, tau, snapshots
    )


def new_head(encoder: Any, task: data.Task, seed: int) -> Head:
    """An untrained head that fits encoder and task."""
    normalize = encoder.normalize_features
    return random_head(encoder.feature_dim, len(task.classes), seed=seed, normalize=normalize)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, which only a model with dropout reads, and put it back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
