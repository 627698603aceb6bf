r"""Accuracies and their standard errors from correctness image by image.

Every number starts from x_ti, the share of seeds (1 or 0 with one seed) in which image i of task t is classified
correctly. acc_t = mean_i x_ti, with standard error std_i(x_ti) / sqrt(N_t): for one seed the binomial one. Models are
compared on the same images, so that what makes an image hard for both drops out. With residuals

    difference              d_t = mean x - mean y                       x_ti - y_ti
    ratio                   r_t = mean x / mean y                       (x_ti - r_t y_ti) / mean y    (delta method)
    difference of ratios    mean x / mean y - mean u / mean v           that of the first minus that of the second

the error is std_i(residual) / sqrt(N_t). Of two models with b images that only the first has right and c that only the
second has, d = (b - c) / N and the error is sqrt((b + c) / N - d^2) / sqrt(N), as in McNemar's test.

A mean over T tasks has the error sqrt(sum_t error_t^2) / T: the tasks are fixed, their images are the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.analysis.results import Measured
from taskarith_fast.errors import DataError

Correct = Mapping[str, Tensor]
"""Task -> correctness float64 [N], averaged over the seeds."""


def accuracies(ours: Correct) -> dict[str, Measured]:
    """Accuracy of every task."""
    return {task: _measured(x.mean(), x) for task, x in ours.items()}


def differences(ours: Correct, theirs: Correct) -> dict[str, Measured]:
    """Accuracy minus that of another model on the same images, task by task."""
    return {task: _measured((x - theirs[task]).mean(), x - theirs[task]) for task, x in ours.items()}


def ratios(ours: Correct, theirs: Correct) -> dict[str, Measured]:
    """Accuracy over that of another model on the same images, task by task.

    Raises:
        DataError: If the other model is never right on a task.
    """
    return {task: _measured(*_ratio(task, x, theirs[task])) for task, x in ours.items()}


def ratio_differences(
    ours: Correct, our_reference: Correct, theirs: Correct, their_reference: Correct
) -> dict[str, Measured]:
    """A ratio minus another, all four models on the same images, task by task.

    Raises:
        DataError: If a reference is never right on a task.
    """
    found = {}
    for task in ours:
        r, mine = _ratio(task, ours[task], our_reference[task])
        q, other = _ratio(task, theirs[task], their_reference[task])
        found[task] = _measured(r - q, mine - other)
    return found


def mean_of(tasks: Mapping[Any, Measured]) -> Measured:
    """Mean over the tasks, each counting the same."""
    values = tasks.values()
    error = math.sqrt(sum(m.stderr**2 for m in values)) / len(values)
    return Measured(value=math.fsum(m.value for m in values) / len(values), stderr=error)


def mean_over_seeds(seeds: Iterable[Correct]) -> dict[str, Tensor]:
    """Average the correctness of each image over seeds; integer tensors [N] in, float64 [N] out."""
    runs = list(seeds)
    return {task: torch.stack([run[task].double() for run in runs]).mean(dim=0) for task in runs[0]}


def _ratio(task: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The ratio of two accuracies and its residuals."""
    if not y.any():
        raise DataError(f"task {task}: the fine-tuned encoder has accuracy 0, nothing can be normalised by it")
    ratio = x.mean() / y.mean()
    return ratio, (x - ratio * y) / y.mean()


def _measured(value: Tensor, residuals: Tensor) -> Measured:
    error = float(residuals.std(correction=0)) / math.sqrt(len(residuals))
    return Measured(value=float(value), stderr=error)
