r"""Accuracies and their standard errors from correctness image by image.
 Every number starts from x_ti, the share of seeds (1 or 0 with one seed) in which image i of task t is
classified correctly. acc_t = mean_i x_ti, with standard error std_i(x_ti) / sqrt(N_t): for one seed the
binomial one. Models are compared on the same images, so differences and ratios use paired residuals:

    difference    d_t = mean_i (x_ti - y_ti)          residual  x_ti - y_ti ratio         r_t = mean_i x_ti /
    mean_i y_ti     residual  (x_ti - r_t y_ti) / mean_i y_ti      (delta method)

A mean over T tasks has the error sqrt(sum_t error_t^2) / T: the tasks are fixed, their images are the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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
    found = {}
    for task, x in ours.items():
        y = theirs[task]
        if not y.any():
            raise DataError(f"task {task}: the fine-tuned encoder has accuracy 0, nothing can be normalised by it")
        ratio = x.mean() / y.mean()
        found[task] = _measured(ratio, (x - ratio * y) / y.mean())
    return found


def mean_of(tasks: Mapping[str, Measured]) -> Measured:
    """Mean over the tasks, each counting the same."""
    values = tasks.values()
    error = math.sqrt(sum(m.stderr**2 for m in values)) / len(values)
    return Measured(value=math.fsum(m.value for m in values) / len(values), stderr=error)


def mean_over_seeds(seeds: Iterable[Correct]) -> dict[str, Tensor]:
    """Average the correctness of each image over seeds; integer tensors [N] in, float64 [N] out."""
    runs = list(seeds)
    return {task: torch.stack([run[task].double() for run in runs]).mean(dim=0) for task in runs[0]}


def _measured(value: Tensor, residuals: Tensor) -> Measured:
    error = float(residuals.std(correction=0)) / math.sqrt(len(residuals))
    return Measured(value=float(value), stderr=error)
