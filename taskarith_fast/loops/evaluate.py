r"""Accuracy of an encoder and its heads, with what is needed to say how sure it is.

For T tasks with accuracies acc_t: mean accuracy (1/T) sum_t acc_t; normalised accuracy (1/T) sum_t acc_t /
ref_t, where ref_t is the accuracy of the model fine-tuned on task t alone, on the same images (Ilharco 2023;
Hazimeh 2024, eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data, inputs
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.runtime import autocast, device_of
from taskarith_fast.loops.samples import check_split

BATCH_SIZE = 128


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Which images of a split were classified correctly."""

    correct: Tensor
    """True where the prediction is the label, bool [N], in the split's order, on the CPU."""

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return int(self.correct.sum()) / len(self.correct)

    @property
    def stderr(self) -> float:
        """Binomial standard error of the accuracy, sqrt(p (1 - p) / N)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.correct))


def evaluate(
    encoder: nn.Module,
    head: nn.Module,
    split: data.Split,
    *,
    batch_size: int = BATCH_SIZE,
    image_size: int | None = None,
    precision: str = "float32",
) -> Evaluation:
    """Classify every image of a split.

    Args:
        encoder: Maps images [B, 3, S, S], or texts, to features [B, D]; it stays on its device, in its mode.
        head: Maps features to logits [B, C]; of equal logits the first wins.
        split: Images and labels.
        batch_size: Images a forward pass.
        image_size: Side of the images in pixels; None takes the encoder's.
        precision: "float32", or "bfloat16" for matrix products under autocast.
    """
    device = device_of(encoder)
    correct = []
    with evaluating(encoder, head), autocast(device, precision):
        for images, labels in batches_of(encoder, split, batch_size=batch_size, image_size=image_size, device=device):
            correct.append((head(inputs.call(encoder, images)).argmax(dim=-1) == labels).cpu())
    return Evaluation(torch.cat(correct))


def evaluate_tasks(
    encoder: nn.Module,
    heads: Mapping[str, nn.Module],
    splits: Mapping[str, data.Split],
    *,
    batch_size: int = BATCH_SIZE,
    image_size: int | None = None,
    precision: str = "float32",
) -> dict[str, Evaluation]:
    """`evaluate` for every task of `splits`, each with its own head; arguments as there."""
    return {
        name: evaluate(encoder, heads[name], split, batch_size=batch_size, image_size=image_size, precision=precision)
        for name, split in splits.items()
    }


class StateEvaluator:
    """Evaluates encoder states, such as merged ones, on a fixed set of tasks: call it with a state.

    Args:
        encoder: The module the states are for. It is worked on in place: its weights are those of the state
            evaluated last. Hand in a copy if that matters.
        heads: Task name -> head.
        splits: Task name -> images, all from validation splits or all from test splits.
        batch_size, image_size, precision: As for `evaluate`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        splits: Mapping[str, data.Split],
        *,
        batch_size: int = BATCH_SIZE,
        image_size: int | None = None,
        precision: str = "float32",
    ) -> None:
        self.encoder, self.heads, self.splits = encoder, dict(heads), dict(splits)
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "image_size": image_size,
            "precision": precision,
        }

    def __call__(self, state: Mapping[str, Tensor]) -> dict[str, Evaluation]:
        """Load `state` into the encoder and evaluate every task.

        Raises:
            CheckpointError: If the state's names or shapes are not the encoder's.
        """
        load_state(self.encoder, state)
        return evaluate_tasks(self.encoder, self.heads, self.splits, **self._options)


def load_state(encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the encoder's own tensors.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    own = encoder.state_dict()
    if own.keys() != state.keys():
        name = sorted(own.keys() ^ state.keys())[0]
        side = "lacks it" if name in own else "has it too many"
        raise CheckpointError(f"{name}: state must have the {len(own)} tensors of the encoder, but {side}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise CheckpointError(
                    f"{name}: state must have shape {list(tensor.shape)} as the encoder, got {list(state[name].shape)}"
                )
            tensor.copy_(state[name])


def mean_accuracy(evaluations: Mapping[str, Evaluation]) -> float:
    """(1/T) sum_t acc_t: every task counts the same, whatever its size."""
    return sum(e.accuracy for e in evaluations.values()) / len(evaluations)


def normalized_accuracy(evaluations: Mapping[str, Evaluation], reference: Mapping[str, Evaluation]) -> float:
    """(1/T) sum_t acc_t / ref_t.

    Args:
        evaluations: The model judged.
        reference: For each of these tasks the model fine-tuned on it alone, evaluated on the same images.

    Raises:
        ArgumentError: If a task has no reference, other images in it, or a reference accuracy of zero.
    """
    check_reference(evaluations, reference)
    return sum(e.accuracy / reference[name].accuracy for name, e in evaluations.items()) / len(evaluations)


def check_reference(tasks: Mapping[str, Evaluation], reference: Mapping[str, Evaluation]) -> None:
    """Refuse a reference that cannot normalise the accuracies of `tasks`; errors as `normalized_accuracy`."""
    for name, evaluation in tasks.items():
        if name not in reference:
            raise ArgumentError(f"reference must have every task evaluated, but lacks {name!r}")
        if len(reference[name].correct) != len(evaluation.correct):
            raise ArgumentError(
                f"reference[{name!r}] must be of the same {len(evaluation.correct)} images, "
                f"got {len(reference[name].correct)}; use the same split for both"
            )
        if reference[name].accuracy == 0:
            raise ArgumentError(f"reference[{name!r}] must have an accuracy above 0 to normalise by, got 0")


def bootstrap_stderr(
    evaluations: Mapping[str, Evaluation],
    reference: Mapping[str, Evaluation] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> float:
    """Bootstrap standard error, over the images of each task, of the mean or the normalised accuracy.

    Images are drawn with replacement within each task; the tasks themselves are fixed. With a reference, the
    same drawn images count for both models, so that an image hard for both does not inflate the error of
    their ratio. A resample of N images is drawn as its counts (how many of each kind: both right, one right,
    none), which is the same distribution.

    Args:
        evaluations: The model judged.
        reference: None for the mean accuracy; else as for `normalized_accuracy`.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Raises:
        ArgumentError: As `normalized_accuracy`.
    """
    generator = torch.Generator().manual_seed(seed)
    if reference is not None:
        check_reference(evaluations, reference)
    total = torch.zeros(resamples, dtype=torch.float64)
    for name, evaluation in evaluations.items():
        ours = evaluation.correct
        if reference is None:
            total += _draw(ours.sum(), len(ours), resamples, generator) / len(ours)
        else:
            total += _ratio_draws(ours, reference[name].correct, resamples, generator)
    return float((total / len(evaluations)).std())


def seeds_stderr(values: Sequence[float]) -> float:
    """Standard error of the mean of one number over several seeds, from their sample deviation.

    Raises:
        ArgumentError: If there are fewer than two values.
    """
    if len(values) < 2:
        raise ArgumentError(f"values must come from at least 2 seeds, got {len(values)}")
    return float(torch.tensor(values, dtype=torch.float64).std()) / math.sqrt(len(values))


def batches_of(
    encoder: Any, split: data.Split, *, batch_size: int, image_size: int | None, augment: bool = False, **options: Any
) -> Iterator[tuple[Any, Tensor]]:
    """Batches of a split as the encoder wants them: `data.text_batches` for one with a tokenizer, else `data.batches`.

    Raises:
        ArgumentError: If images are meant and texts given, or texts are to be augmented or have a size.
    """
    if hasattr(encoder, "tokenizer"):
        if augment or image_size is not None:
            raise ArgumentError("augment and image_size are for images, not for a model that reads texts")
        return data.text_batches(split, tokenizer=encoder.tokenizer, batch_size=batch_size, **options)
    check_split(encoder, split)
    return data.batches(
        split,
        batch_size=batch_size,
        image_size=image_size or encoder.image_size,
        mean=encoder.mean,
        std=encoder.std,
        augment=augment,
        **options,
    )


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and inference mode inside the block; each module's own mode after it."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def _ratio_draws(ours: Tensor, theirs: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Resampled ratios of two accuracies on the same images, [resamples]; 1 where both have none right."""
    both, ours_only, theirs_only = (ours & theirs).sum(), (ours & ~theirs).sum(), (~ours & theirs).sum()
    left = torch.full((resamples,), float(len(ours)), dtype=torch.float64)
    counts, images = [], len(ours)
    for kind in (both, ours_only, theirs_only):
        drawn = torch.binomial(left, torch.full_like(left, int(kind) / max(images, 1)), generator=generator)
        counts.append(drawn)
        left, images = left - drawn, images - int(kind)
    hits, reference_hits = counts[0] + counts[1], counts[0] + counts[2]
    return torch.where(reference_hits > 0, hits / reference_hits.clamp(min=1), 1.0)


def _draw(hits: Tensor, images: int, resamples: int, generator: torch.Generator) -> Tensor:
    count = torch.full((resamples,), float(images), dtype=torch.float64)
    return torch.binomial(count, torch.full_like(count, int(hits) / images), generator=generator)
