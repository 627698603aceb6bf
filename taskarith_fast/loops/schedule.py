"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math

from taskarith_fast.errors import ArgumentError

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate(step: int, *, steps: int, lr: float, warmup: int = 0, schedule: str = "cosine") -> float:
    """The learning rate of one optimizer step.

    Warm-up: lr (step + 1) / warmup. After it, with p = (step - warmup) / (steps - warmup), the rate is
    lr (1 + cos(pi p)) / 2 for "cosine" (Ilharco 2023 and its successors), lr (1 - p) for "linear", lr for
    "constant". The peak is reached at step warmup - 1; the last step's rate is above zero. A warm-up as long
    as the run, or longer, never ends.

    Args:
        step: Number of the step, from 0 to steps - 1.
        steps: Steps of the whole run.
        lr: Peak rate.
        warmup: Steps of the warm-up.
        schedule: "cosine", "linear" or "constant".

    Raises:
        ArgumentError: If `schedule` has another name, `step` is outside the run, or `warmup` is negative.
    """
    if schedule not in SCHEDULES:
        raise ArgumentError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    if not 0 <= step < steps:
        raise ArgumentError(f"step must be in [0, steps={steps}), got {step}")
    if warmup < 0:
        raise ArgumentError(f"warmup must be at least 0, got {warmup}")
    if step < warmup:
        return lr * (step + 1) / warmup
    if schedule == "constant":
        return lr
    done = (step - warmup) / (steps - warmup)
    return lr * (1 - done) if schedule == "linear" else lr * 0.5 * (1 + math.cos(math.pi * done))
