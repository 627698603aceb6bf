"""Fine-tuning: AdamW, warm-up and decay, clipped gradients; the loop reads in the order it runs.

The published protocol (Ilharco 2023, Ortiz 2023): decay on ALL trained tensors, toward zero and not toward the
pre-trained model, gradient norm clipped to 1, cross entropy. The head is frozen (Hazimeh 2024, step 2) or
trained along with the encoder (their "full fine-tuning" from a random head). What of the encoder is trained is
the recipe's choice, see `recipes`; the rest gets no gradient, no decay, no optimizer state, and ends
bit-identical.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError, TaskarithError
from taskarith_fast.loops import distributed
from taskarith_fast.loops.combination import check_combination
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.distributed import World
from taskarith_fast.loops.evaluate import batches_of
from taskarith_fast.loops.objective import Objective
from taskarith_fast.loops.optimizer import clip_gradients, make_optimizer, rate, set_rates
from taskarith_fast.loops.recipes import prepare, surroundings
from taskarith_fast.loops.resume import RunCheckpoint, identify
from taskarith_fast.loops.runtime import threads
from taskarith_fast.loops.step_clock import StepClock
from taskarith_fast.masks import Masks
from taskarith_fast.models import Head, random_head
from taskarith_fast.models.blocks import checkpoint_activations
from taskarith_fast.models.lora import LowRankAdapter
from taskarith_fast.progress import SILENT, Progress

_CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device


class DivergedError(TaskarithError):
    """The loss is no longer a number."""


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """What a run leaves behind."""

    state: dict[str, Tensor]
    """The encoder's state dict, on the CPU; low-rank updates are merged into it."""
    head_states: dict[str, dict[str, Tensor]]
    """Task name -> the state dict of its head, on the CPU; as given unless it was trained."""
    history: dict[str, list[float]]
    """"loss" and "lr" (the encoder's) of every optimizer step."""
    config: FinetuneConfig
    """What the run was told."""
    trained: tuple[str, ...]
    """Names of the encoder tensors that were trained."""
    seconds: float
    """Wall time."""
    step_seconds: dict[str, float]
    """Median wall time of an optimizer step's parts: "forward_backward" (data too), and "step" (clipping too)."""
    adapter: LowRankAdapter | None = None
    """The factors of the recipe "lora", on the CPU."""

    @property
    def head_state(self) -> dict[str, Tensor]:
        """The state dict of the head of a run with one task."""
        (state,) = self.head_states.values()
        return state


def finetune(
    encoder: nn.Module,
    head: nn.Module | None,
    task: data.Task,
    config: FinetuneConfig | None = None,
    progress: Progress | None = None,
    *,
    masks: Masks | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> FinetuneResult:
    """Fine-tune a copy of an encoder on the "train" split of one task.

    Under torchrun every process must call it; each computes its part of every batch, and all return the same.

    Args:
        encoder: Maps images [B, 3, S, S] to features [B, D]; not changed.
        head: Maps features to logits; not changed. None makes a random one, for ``config.train_head``.
        task: What to learn; only its "train" split is read.
        config: None for the papers'.
        progress: Shows a bar with the loss and the time left.
        masks: `Masks` of the encoder's parameters, for the recipes "talos", "lota" and "masked": True entries are
            trained, tensors without a mask are frozen.
        checkpoint: A file that holds the state of the run every ``config.checkpoint_every`` steps. If it exists
            the run goes on from it. It is left there: remove it when the result is safe.

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
    if head is None:
        if not config.train_head:
            raise ArgumentError("head must be given unless config.train_head is true; probe the task first")
        head = new_head(encoder, task, config.seed)
    place = None if checkpoint is None else Path(checkpoint)
    return _train(encoder, {task.name: head}, {task.name: task}, config, progress or SILENT, masks, place)


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
) -> FinetuneResult:
    with distributed.joined(config.device) as world, threads(config.threads), seeded(config.seed, world.device):
        check_combination(config, masks, checkpoint, world)
        identity = {} if checkpoint is None else identify(encoder, heads, tasks, config, masks, world.size)
        run = None if checkpoint is None else RunCheckpoint(checkpoint, identity, config.checkpoint_every)
        # A function of its own: what it wraps for several processes must be gone when they part.
        return _run(encoder, heads, tasks, config, progress if distributed.is_main() else SILENT, masks, run, world)


def _run(
    encoder: nn.Module,
    heads: Mapping[str, nn.Module],
    tasks: Mapping[str, data.Task],
    config: FinetuneConfig,
    progress: Progress,
    masks: Masks | None,
    run: RunCheckpoint | None,
    world: World,
) -> FinetuneResult:
    start = time.perf_counter()

    # Model: copies, with gradients only where the recipe wants them.
    model = copy.deepcopy(encoder).to(world.device).train()
    classifiers = [copy.deepcopy(head).to(world.device).requires_grad_(config.train_head) for head in heads.values()]
    prepared = prepare(model, config, masks)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    objective = Objective(model, classifiers, prepared.adapter, config)
    shared = world.wrap(objective, config.sharding)

    # Optimizer, and the state of an earlier process of this run.
    optimizer = make_optimizer(objective, config, masks)
    done, losses = (0, []) if run is None else run.load(objective, optimizer)

    # Data: an endless stream of batches for each task.
    skip = done * config.accumulation
    streams = [_stream(model, task.splits["train"], config, len(tasks), world, skip) for task in tasks.values()]
    steps = config.total_steps(sum(len(task.splits["train"]) for task in tasks.values()))

    clock = StepClock(world.device)
    passes = surroundings(model, prepared, config, masks, world.size)
    with passes, progress.stage(f"finetune {' + '.join(tasks)}", steps) as stage:
        stage.advance(done)
        for step in range(done, steps):
            clock.start()
            set_rates(optimizer, step, steps, config)
            loss = torch.zeros((), device=world.device)
            for turn in range(1, config.accumulation + 1):
                # In all passes of the first step, in which a wrapper learns the graph, and the last one of others.
                with distributed.averaging(shared, step == done or turn == config.accumulation):
                    part = shared([next(stream) for stream in streams]) / config.accumulation
                    part.backward()
                loss += part.detach()
            clock.lap("forward_backward")
            clip_gradients(optimizer, config)
            optimizer.step()
            optimizer.zero_grad()
            clock.lap("step")
            losses.append(loss)
            note = _checked(world.mean(loss), step, config) if step % _CHECK_EVERY == 0 else None
            if run is not None:
                run.save(step + 1, objective, optimizer, losses, world)
            stage.advance(note=note)

    state = _on_cpu(model)
    if prepared.adapter:
        prepared.adapter.check_seen()
        state = prepared.adapter.cpu().merged(state)
    _check_finite({name: state[name] for name in prepared.names}, config)
    head_states = {name: _on_cpu(head) for name, head in zip(heads, classifiers, strict=True)}
    history = {
        "loss": world.mean(torch.stack(losses)).tolist(),
        "lr": [rate(step, steps, config, config.lr) for step in range(steps)],
    }
    seconds = time.perf_counter() - start
    return FinetuneResult(
        state, head_states, history, config, prepared.names, seconds, clock.medians(), prepared.adapter
    )


def _stream(
    model: nn.Module, split: data.Split, config: FinetuneConfig, tasks: int, world: World, skip: int
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """This process's part of shuffled batches of one task's share, epoch after epoch, without the first `skip`.

    A part comes with its weight: the mean over the processes of weight times the part's mean loss is the mean
    loss of the batch.
    """
    size = config.batch_size // tasks
    first, skip = divmod(skip, -(-len(split) // size))
    for epoch in itertools.count(first):
        batches = batches_of(
            model,
            split,
            batch_size=size,
            image_size=config.image_size,
            shuffle=True,
            seed=config.seed,
            epoch=epoch,
            augment=config.augment,
            device=world.device,
            skip=skip,
            part=(world.rank, world.size),
        )
        for number, (images, labels) in enumerate(batches, skip):
            count = min(size, len(split) - number * size)
            yield images, labels, world.part(count) * world.size / count
        skip = 0


def new_head(encoder: Any, task: data.Task, seed: int) -> Head:
    """An untrained head that fits encoder and task."""
    normalize = encoder.normalize_features
    return random_head(encoder.feature_dim, len(task.classes), seed=seed, normalize=normalize)


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: distributed.whole(tensor.detach()).cpu() for name, tensor in module.state_dict().items()}


def _checked(loss: Tensor, step: int, config: FinetuneConfig) -> str:
    if not math.isfinite(float(loss)):
        raise DivergedError(f"loss must be finite, got {float(loss)} at step {step}; try an lr below {config.lr:g}")
    return f"loss {float(loss):.3f}"


def _check_finite(trained: Mapping[str, Tensor], config: FinetuneConfig) -> None:
    for name, tensor in trained.items():
        if not bool(tensor.isfinite().all()):
            raise DivergedError(f"{name}: weights must be finite after training; try an lr below {config.lr:g}")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, which only a model with dropout reads, and put it back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
