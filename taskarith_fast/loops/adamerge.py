r"""AdaMerging: learn the coefficients of a merge by making its predictions on unlabelled images certain.

    min_c  sum_t  mean_x H(softmax(head_t(f(x; theta(c)))))          Adam on c; the images x of task t have no labels

theta(c) is one of `merging.learned`: task vectors added to the base (AdaMerging, Yang 2024, eq. 7), what TIES leaves of
them (AdaMerging++), or low-rank parts added to the average (CART++, Choi et al. 2024, eq. 6). Nothing is differentiated
through the merge: the weights are written into the model, each task is run forward and backward to them, and T dot
products a tensor give the gradient by the coefficients. The published code builds autograd through T stacked task
vectors instead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.inputs import Inputs
from taskarith_fast.inputs import count as size_of
from taskarith_fast.loops.finetune import DivergedError, seeded
from taskarith_fast.loops.merged_model import MergedModel, resident
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.merging.common import check_compatible
from taskarith_fast.merging.learned import AdaMerging
from taskarith_fast.merging.methods import LEARNED, find_method
from taskarith_fast.progress import SILENT, Progress

State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class AdaMergeResult:
    """What an adaptation leaves behind."""

    state: dict[str, Tensor]
    """The merged state, new tensors with the names, dtypes and device of the base."""
    coefficients: Tensor
    """As used in the merge (clamped, if so), float64 [T, L] on the CPU; a row for each task, a column for each name."""
    tasks: tuple[str, ...]
    """The T tasks, in the order of the models."""
    names: tuple[str, ...]
    """The L tensors that have coefficients."""
    entropy: dict[str, list[float]]
    """Task name -> mean entropy in nats on each step's images, before that step's update."""
    settings: AdaMerging
    """What the run was told."""
    seconds: float
    """Wall time."""

    @property
    def steps(self) -> int:
        """Updates of the coefficients."""
        return self.settings.steps


def adamerge(
    model: nn.Module,
    base: State,
    finetuned: Sequence[State],
    heads: Mapping[str, nn.Module],
    loaders: Mapping[str, Iterable[Any]],
    *,
    method: str = "adamerging",
    progress: Progress | None = None,
    **parameters: Any,
) -> AdaMergeResult:
    """Merge models with coefficients learned on unlabelled images (test-time adaptation).

    Memory beyond the T + 1 models: the gradient of one model, and one task's activations. "adamerging_plus_plus" holds
    T processed models besides; "cart_plus_plus" the average and the low-rank factors.

    Args:
        model: Maps images [B, 3, S, S] to features, with the names of `base`. It is worked on in place, in evaluation
            mode, and ends with the merged weights. States of another dtype or device are converted to its own first.
        base: The pre-trained state.
        finetuned: T fine-tuned states, in the order of `heads`.
        heads: Task name -> head from features to logits [B, C], on the model's device; not changed.
        loaders: Task name -> batches of images [B, 3, S, S], or (images, labels) with labels ignored. It is iterated
            again when it ends, so pass a list or a DataLoader, not a generator.
        method: "adamerging", "adamerging_plus_plus" or "cart_plus_plus".
        progress: Shows a bar with the mean entropy.
        **parameters: The method's parameters: task_wise, start, lr, steps, batches_per_step, clamp, seed, and
            ties_density ("adamerging_plus_plus") or rank_ratio and svd ("cart_plus_plus"); defaults in
            ``merge_methods()``. Tensors that do not affect the predictions keep `start`.

    Returns:
        The merged state, its coefficients, and the course of the run; the same arguments give the same bytes on one
        machine with one number of threads.

    Raises:
        ArgumentError: If a parameter is not known or out of its domain, a head or a loader is missing, or a loader
            gives no images.
        CheckpointError: If the states do not fit together or the model, or hold NaN or Inf.
        DivergedError: If an entropy becomes NaN.
    """
    began = time.perf_counter()
    settings = find_method(method, parameters, LEARNED).function(**parameters)
    tasks = _checked_tasks(finetuned, heads, loaders)
    states = [dict(base), *(dict(state) for state in finetuned)]  # lazy states are read here
    check_compatible(states[0], states[1:])
    first, *rest = resident(model, states)
    merged = MergedModel(model, settings.prepare(first, rest))
    device = device_of(model)

    width = 1 if settings.task_wise else len(merged.merge.names)
    coefficients = torch.full((len(tasks), width), settings.start, dtype=torch.float64, device=device)
    optimizer = torch.optim.Adam([coefficients.requires_grad_(True)], lr=settings.lr, betas=(0.9, 0.999))
    history = []
    with merged.adapting(heads), torch.enable_grad(), seeded(settings.seed, device):
        streams = {name: _stream(name, loaders[name]) for name in tasks}
        with (progress or SILENT).stage(method, settings.steps) as stage:
            for step in range(settings.steps):
                merged.write(_used(settings, coefficients, merged))
                batches = {n: [next(s) for _ in range(settings.batches_per_step)] for n, s in streams.items()}
                gradient, entropies = merged.gradient(heads, batches)
                history.append(_checked(entropies.tolist(), tasks, step, settings))
                if settings.task_wise:
                    gradient = gradient.sum(1, keepdim=True)
                coefficients.grad = gradient * settings.open(coefficients.detach())
                optimizer.step()
                stage.advance(note=f"entropy {sum(history[-1]) / len(tasks):.3f}")
        used = _used(settings, coefficients, merged)
        merged.write(used)
    return AdaMergeResult(
        state=_like(model, states[0]),
        coefficients=used.cpu().clone(),
        tasks=tasks,
        names=merged.merge.names,
        entropy={name: [row[t] for row in history] for t, name in enumerate(tasks)},
        settings=settings,
        seconds=time.perf_counter() - began,
    )


def _used(settings: AdaMerging, coefficients: Tensor, merged: MergedModel) -> Tensor:
    """The coefficients in the merge, [T, L]."""
    return settings.used(coefficients.detach()).expand(-1, len(merged.merge.names))


def _checked_tasks(
    finetuned: Sequence[State], heads: Mapping[str, nn.Module], loaders: Mapping[str, Any]
) -> tuple[str, ...]:
    for name, other, theirs in (("heads", loaders, heads), ("loaders", heads, loaders)):
        missing = [task for task in other if task not in theirs]
        if missing:
            raise ArgumentError(f"{name} must have one for every task, but lacks {', '.join(map(repr, missing))}")
    if len(heads) != len(finetuned):
        raise ArgumentError(f"finetuned must hold one state for each of the {len(heads)} heads, got {len(finetuned)}")
    return tuple(heads)


def _stream(name: str, loader: Iterable[Any]) -> Iterator[Inputs]:
    """Batches of images or texts without end."""
    while True:
        count = 0
        for batch in loader:
            images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            is_batch = isinstance(images, Mapping) or (isinstance(images, Tensor) and images.dim() == 4)
            if not is_batch or not size_of(images):
                got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise ArgumentError(
                    f"loaders[{name!r}] must give images [B, 3, S, S] (or text dicts) or (images, labels), got {got}"
                )
            count += 1
            yield images
        if not count:
            raise ArgumentError(
                f"loaders[{name!r}] must give batches each time it is iterated, got none; "
                "pass a list or a DataLoader, not a generator"
            )


def _checked(entropies: list[float], tasks: tuple[str, ...], step: int, settings: AdaMerging) -> list[float]:
    for task, value in zip(tasks, entropies, strict=True):
        if not math.isfinite(value):
            raise DivergedError(
                f"entropy of task {task!r} must be finite, got {value} at step {step}; "
                + (f"try an lr below {settings.lr:g}" if step else "check its images and its head for NaN")
            )
    return entropies


def _like(model: nn.Module, base: State) -> dict[str, Tensor]:
    """Copies of the model's tensors, in the order, dtypes and devices of `base`."""
    own = model.state_dict()
    return {name: own[name].detach().to(b.device, b.dtype, copy=True) for name, b in base.items()}
