r"""Linear probing: the first step of closed-vocabulary task addition (Hazimeh 2024, step 1).

The encoder is frozen, so its features are computed once, and what is left is a small problem in W [C, D] and
b [C]: minimise the mean cross entropy of x W^T + b. It is solved either as the paper does, by AdamW from a
random head, with the learning rate picked on validation data; or as the convex problem it is, with an L2
penalty |W|^2 / (2 C N), to its optimum by L-BFGS: deterministic, in a fraction of the time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskarith_fast import data
from taskarith_fast.loops.config import ProbeConfig
from taskarith_fast.loops.features import FeatureCache
from taskarith_fast.loops.runtime import resolve_device, threads
from taskarith_fast.loops.schedule import learning_rate
from taskarith_fast.models import Head, random_head
from taskarith_fast.progress import SILENT, Progress

Classifier = tuple[Tensor, Tensor]
"""Weight [C, D] and bias [C]."""


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """A trained head and how it was chosen."""

    head: Head
    """The classifier, frozen, on the device it was trained on."""
    lr: float | None
    """Peak learning rate chosen; None with the solver "lbfgs"."""
    c: float | None
    """Inverse penalty C chosen; None with the solver "adamw"."""
    val_accuracy: float
    """Validation accuracy of the head."""
    scores: dict[float, float]
    """Validation accuracy for every value of the grid."""
    seconds: float
    """Wall time, features included where they were not cached."""


def probe(
    encoder: Any,
    task: data.Task,
    config: ProbeConfig | None = None,
    progress: Progress | None = None,
    *,
    cache: FeatureCache | None = None,
) -> ProbeResult:
    """Train a linear head on the frozen features of a task.

    To pick the learning rate on one named task and use it for all, as the paper does, probe that task first
    and give
    the others its choice: ``dataclasses.replace(config, lrs=(result.lr,))``.

    Args:
        encoder: Maps images to features [B, D]; it is moved to the config's device and not changed otherwise.
        task: Its "train" split is learned, its "val" split chooses from the grid; "test" is not touched.
        config: None for the paper's.
        progress: Shows bars.
        cache: Features of this encoder, to share with other uses; None makes one for this call.

    Returns:
        The head with the best validation accuracy; the smallest grid value among equals.
    """
    config, progress = config or ProbeConfig(), progress or SILENT
    start = time.perf_counter()
    adamw = config.solver == "adamw"
    with threads(config.threads):
        encoder.to(resolve_device(config.device))
        cache = cache or FeatureCache(encoder, batch_size=config.feature_batch_size, image_size=config.image_size)
        train, train_labels = cache.get(task.splits["train"], progress)
        val, val_labels = cache.get(task.splits["val"], progress)
        if encoder.normalize_features:
            train, val = F.normalize(train, dim=-1), F.normalize(val, dim=-1)
        fit = fit_adamw if adamw else fit_logistic
        scores, classifiers = {}, {}
        for value in progress.track(config.lrs if adamw else config.cs, f"probe {task.name}"):
            weight, bias = classifiers[value] = fit(train, train_labels, len(task.classes), value, config)
            scores[value] = float((F.linear(val, weight, bias).argmax(dim=-1) == val_labels).double().mean())
    best = max(scores, key=lambda value: scores[value])  # the first of equals; the grid ascends
    head = Head(*classifiers[best], normalize=encoder.normalize_features).requires_grad_(False)
    seconds = time.perf_counter() - start
    return ProbeResult(head, best if adamw else None, None if adamw else best, scores[best], scores, seconds)


def fit_adamw(features: Tensor, labels: Tensor, classes: int, lr: float, config: ProbeConfig) -> Classifier:
    """Train a head from random values by AdamW, with warm-up and cosine decay.

    Args:
        features: Inputs, shape [N, D].
        labels: Targets, int64 [N].
        classes: C.
        lr: Peak learning rate.
        config: Steps, batch size, warm-up, weight decay, seed.
    """
    head = random_head(features.shape[1], classes, seed=config.seed).to(features.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=config.weight_decay, fused=True)
    order = _shuffled(len(labels), config.batch_size or len(labels), config.seed)
    for step, rows in enumerate(itertools.islice(order, config.steps)):
        rows = rows.to(features.device)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps=config.steps, lr=lr, warmup=config.warmup)
        loss = F.cross_entropy(head(features[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight, bias = (parameter.detach() for parameter in head.parameters())
    return weight, bias


def fit_logistic(features: Tensor, labels: Tensor, classes: int, c: float, config: ProbeConfig) -> Classifier:
    """Minimise mean cross entropy + |W|^2 / (2 C N) by L-BFGS in float64 from zero; b is free.

    With ``config.standardize`` W is of features of zero mean and unit variance, which gives C one meaning for
    all encoders; the result is folded back to the features as they are. This is scikit-learn's
    LogisticRegression(C=c), behind a StandardScaler or not; its objective is C N times ours.

    Args:
        features: Inputs, shape [N, D].
        labels: Targets, int64 [N].
        classes: C, the number of classes.
        c: Inverse strength of the penalty.
        config: Iterations and tolerance.
    """
    x = features.double()
    shift, spread = torch.zeros_like(x[0]), torch.ones_like(x[0])
    if config.standardize:
        shift, spread = x.mean(dim=0), x.std(dim=0, correction=0)
        # A feature that is constant but for rounding, or dead beside the others, has no scale of its own.
        least = torch.finfo(features.dtype).eps * shift.abs().clamp_min(spread.max())
        spread = spread.where(spread > least, 1.0)
    x = (x - shift) / spread
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=config.max_iterations,
        tolerance_grad=config.tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + weight.square().sum() / (2 * c * len(labels))
        loss.backward()
        return loss

    solver.step(closure)
    weight = weight.detach() / spread
    return weight.float(), (bias.detach() - weight @ shift).float()


def _shuffled(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of batch after batch, a new permutation each epoch, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).split(batch_size)
