"""Which output's gradient is squared: classes taken exactly, drawn, given, or as published merging code has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, check_choice

LABELS = ("exact", "sampled", "label", "mergelm")
TARGETS = ("logprob", "logit")


@dataclass(frozen=True)
class Scoring:
    """How squares are made; checked when made."""

    labels: str = "exact"
    """"exact", "sampled", "label" or "mergelm", see fisher_diagonal."""
    target: str = "logprob"
    """"logprob" or "logit"."""
    batch_split: int | None = None
    """Most images a forward pass; None takes batches as they come."""
    checkpoint: bool = False
    """Compute the transformer blocks twice and keep only their inputs."""

    def __post_init__(self) -> None:
        check_choice("labels", self.labels, LABELS)
        check_choice("target", self.target, TARGETS)
        if self.batch_split is not None and self.batch_split < 1:
            raise ArgumentError(f"batch_split must be at least 1, got {self.batch_split}")
        if self.labels == "mergelm" and (self.batch_split is not None or self.target != "logprob"):
            raise ArgumentError(
                "labels='mergelm' squares the gradient of a whole batch of log-probabilities; "
                "it takes neither batch_split nor target='logit'"
            )

    def passes(self, classes: int) -> int:
        """Backward passes a batch."""
        return classes if self.labels == "exact" else 1


def cotangents(logits: Tensor, given: Tensor | None, scoring: Scoring, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the gradients by the logits whose pull-backs are to be squared and added.

    Args:
        logits: Shape [B, C], finite, detached.
        given: Labels, int64 [B]; needed for labels="label" only.
        scoring: Which classes, and of what the gradient is.
        generator: Draws one number an image for labels="sampled".

    Raises:
        ArgumentError: If labels are needed and do not fit.
    """
    z = logits.float()
    p = z.softmax(dim=-1)
    if scoring.labels == "mergelm":
        roots = p.sqrt()
        yield (roots - p * roots.sum(dim=-1, keepdim=True)).to(logits.dtype)
        return
    base = -p if scoring.target == "logprob" else torch.zeros_like(p)  # d log p_y = e_y - p, d z_y = e_y
    if scoring.labels == "exact":
        for c in range(p.shape[1]):
            cotangent = base.clone()
            cotangent[:, c] += 1
            yield (cotangent * p[:, c : c + 1].sqrt()).to(logits.dtype)
        return
    classes = sample_classes(p, generator) if scoring.labels == "sampled" else _checked_labels(given, p)
    yield base.scatter_add(1, classes[:, None], torch.ones_like(p)).to(logits.dtype)


def sample_classes(p: Tensor, generator: torch.Generator) -> Tensor:
    """One class a row, drawn from the row's probabilities by one number each, shape [B]."""
    uniform = torch.rand(len(p), 1, generator=generator, dtype=torch.float64).to(p.device)
    cumulative = p.double().cumsum(dim=-1)
    return (cumulative <= uniform * cumulative[:, -1:]).sum(dim=-1).clamp(max=p.shape[1] - 1)


def _checked_labels(labels: Tensor | None, p: Tensor) -> Tensor:
    rows, classes = p.shape
    if labels is None:
        raise ArgumentError("labels='label' needs batches of (images, labels), got images alone")
    if labels.shape != (rows,) or labels.is_floating_point():
        raise ArgumentError(
            f"batches: labels must be integers of shape [B={rows}], got {labels.dtype} {list(labels.shape)}"
        )
    if rows and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ArgumentError(
            f"batches: labels must be in [0, C={classes}), got {int(labels.min())} to {int(labels.max())}"
        )
    return labels.long().to(p.device)
