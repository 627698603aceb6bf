"""Fine-tuning: AdamW, warm-up and decay, clipped gradients; the loop reads in the order it runs.

The published recipe (Ilharco 2023, Ortiz 2023): decay on ALL trainable tensors, toward zero and not toward
the pre-trained model, gradient norm clipped to 1, cross entropy. The head is frozen (Hazimeh 2024, step 2) or
trained along with the encoder (their "full fine-tuning" from a random head). Frozen tensors get no gradient,
no decay, no optimizer state, and end bit-identical.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError, TaskarithError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.evaluate import batches_of
from taskarith_fast.loops.runtime import autocast, resolve_device, threads
from taskarith_fast.loops.schedule import learning_rate
from taskarith_fast.models import Head, linear_layer_names, random_head
from taskarith_fast.progress import SILENT, Progress

_CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device


class DivergedError(TaskarithError):
    """The loss is no longer a number."""


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """What a run leaves behind."""

    state: dict[str, Tensor]
    """The encoder's state dict, on the CPU."""
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
) -> FinetuneResult:
    """Fine-tune a copy of an encoder on the "train" split of one task.

    Args:
        encoder: Maps images [B, 3, S, S] to features [B, D]; not changed.
        head: Maps features to logits; not changed. None makes a random one, for ``config.train_head``.
        task: What to learn; only its "train" split is read.
        config: None for the paper's.
        progress: Shows a bar with the loss and the time left.

    Returns:
        State dicts and the course of the run. The same arguments give the same bytes on one machine.

    Raises:
        ArgumentError: If `head` is None and not to be trained, or ``config.trainable`` selects nothing.
        DivergedError: If the loss or a weight becomes NaN or infinite.
    """
    config = config or FinetuneConfig()
    if head is None:
        if not config.train_head:
            raise ArgumentError("head must be given unless config.train_head is true; probe the task first")
        head = new_head(encoder, task, config.seed)
    return _train(encoder, {task.name: head}, {task.name: task}, config, progress or SILENT)


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
        config: None for the paper's.
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
) -> FinetuneResult:
    start = time.perf_counter()
    device = resolve_device(config.device)
    with threads(config.threads), seeded(config.seed, device):
        # Model: copies, with gradients only where they are used.
        model = copy.deepcopy(encoder).to(device).train()
        classifiers = {
            name: copy.deepcopy(head).to(device).requires_grad_(config.train_head) for name, head in heads.items()
        }
        trained = _select(model, config.trainable)

        # Data: an endless stream of batches for each task.
        streams = [_stream(model, task.splits["train"], config, len(tasks), device) for task in tasks.values()]
        steps = config.total_steps(sum(len(task.splits["train"]) for task in tasks.values()))

        # Optimizer: fused where torch has it, one group for the encoder, one for heads that are trained.
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if p.requires_grad], "peak": config.lr}
        ]
        if config.train_head:
            peak = config.lr if config.head_lr is None else config.head_lr
            groups.append({"params": [p for head in classifiers.values() for p in head.parameters()], "peak": peak})
        optimizer = torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        parameters = [p for group in groups for p in group["params"]]

        losses, rates = [], []
        with progress.stage(f"finetune {' + '.join(tasks)}", steps) as stage:
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(
                        step, steps=steps, lr=group["peak"], warmup=config.warmup, schedule=config.schedule
                    )
                loss = torch.zeros((), device=device)
                for _ in range(config.accumulation):
                    part = _loss(model, list(classifiers.values()), streams, config, device) / config.accumulation
                    part.backward()
                    loss += part.detach()
                if config.clip is not None:
                    nn.utils.clip_grad_norm_(parameters, config.clip)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss)
                rates.append(optimizer.param_groups[0]["lr"])
                note = _checked(loss, step, config) if step % _CHECK_EVERY == 0 else None
                stage.advance(note=note)
        _check_finite(model, config)
    head_states = {name: _on_cpu(head) for name, head in classifiers.items()}
    history = {"loss": torch.stack(losses).tolist(), "lr": rates}
    return FinetuneResult(_on_cpu(model), head_states, history, config, trained, time.perf_counter() - start)


def _loss(
    model: nn.Module,
    heads: list[nn.Module],
    streams: list[Iterator[tuple[Tensor, Tensor]]],
    config: FinetuneConfig,
    device: torch.device,
) -> Tensor:
    """Mean over the tasks of the loss on the next batch of each; one pass through the encoder for all."""
    images, labels = zip(*(next(stream) for stream in streams), strict=True)
    with autocast(device, config.precision):
        features = model(torch.cat(images)).split([len(part) for part in labels])
        losses = [
            F.cross_entropy(head(x).float(), y, label_smoothing=config.label_smoothing)
            for head, x, y in zip(heads, features, labels, strict=True)
        ]
    return torch.stack(losses).mean()


def _stream(
    model: nn.Module, split: data.Split, config: FinetuneConfig, tasks: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of one task's share of the batch, epoch after epoch."""
    for epoch in itertools.count():
        yield from batches_of(
            model,
            split,
            batch_size=config.batch_size // tasks,
            image_size=config.image_size,
            shuffle=True,
            seed=config.seed,
            epoch=epoch,
            augment=config.augment,
            device=device,
        )


def new_head(encoder: Any, task: data.Task, seed: int) -> Head:
    """An untrained head that fits encoder and task."""
    normalize = encoder.normalize_features
    return random_head(encoder.feature_dim, len(task.classes), seed=seed, normalize=normalize)


def _select(model: nn.Module, trainable: str) -> tuple[str, ...]:
    """Let exactly the tensors named by `trainable` have gradients, and return their names."""
    names = tuple(name for name, _ in model.named_parameters())
    if trainable != "full":
        names = linear_layer_names(names, "p1" if trainable == "qkvo" else trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return names


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


def _checked(loss: Tensor, step: int, config: FinetuneConfig) -> str:
    if not math.isfinite(float(loss)):
        raise DivergedError(f"loss must be finite, got {float(loss)} at step {step}; try an lr below {config.lr:g}")
    return f"loss {float(loss):.3f}"


def _check_finite(model: nn.Module, config: FinetuneConfig) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise DivergedError(f"{name}: weights must be finite after training; try an lr below {config.lr:g}")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator, which only a model with dropout reads, and put it back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
