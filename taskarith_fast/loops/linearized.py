r"""Evaluation, search of the scale, and negation for linearized models.

    f_lin(x; sum_t scale_t tau_t) = f(x; theta_0) + sum_t scale_t J tau_t

One forward pass a batch computes f and every J tau_t (`TangentFeatures`); after it a point of a grid costs a small
product and the heads. The same for task vectors of ordinary fine-tuning is post-hoc linearization (Ortiz-Jimenez 2023,
section 3): how much of what they do survives it says how linear fine-tuning was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.evaluate import BATCH_SIZE, Evaluation, StateEvaluator, batches_of, evaluating
from taskarith_fast.loops.merge import SCALES, SearchResult, line_search
from taskarith_fast.loops.negation import NegationResult, search_scale_of_negation
from taskarith_fast.loops.runtime import autocast, device_of
from taskarith_fast.progress import SILENT, Progress
from taskarith_fast.tangent import TangentFeatures

Tau = Mapping[str, Tensor]


class LinearizedEvaluator:
    """Evaluates an encoder linearized at its weights, on a fixed set of tasks: call it with one scale a task vector.

    A split is encoded when it is first asked for; its features and tangents, float32 [1 + T, N, D], are kept.

    Args:
        encoder: The expansion point theta_0; not changed.
        heads: Task name -> head.
        splits: Task name -> images, all from validation splits or all from test splits.
        taus: T task vectors, name -> delta, of linearized or of ordinary fine-tuning.
        batch_size, image_size, precision: As for `evaluate`.
        advance: Called with the number of images of a split when they are encoded.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        splits: Mapping[str, data.Split],
        taus: Sequence[Tau],
        *,
        batch_size: int = BATCH_SIZE,
        image_size: int | None = None,
        precision: str = "float32",
        advance: Callable[[int], None] = lambda images: None,
    ) -> None:
        self.encoder, self.heads, self.splits, self.taus = encoder, dict(heads), dict(splits), list(taus)
        self._options: dict[str, Any] = {"batch_size": batch_size, "image_size": image_size}
        self._precision, self._advance = precision, advance
        self._features: dict[str, TangentFeatures] = {}

    def __call__(self, scales: Sequence[float] | Tensor) -> dict[str, Evaluation]:
        """Evaluate every task at theta_0 + sum_t scales[t] tau_t.

        Raises:
            ArgumentError: If there is not one scale a task vector, or a task vector is not the encoder's.
        """
        return {name: self.evaluate(name, scales) for name in self.splits}

    def evaluate(self, name: str, scales: Sequence[float] | Tensor) -> Evaluation:
        """Evaluate one task; arguments and errors as of a call."""
        head, features = self.heads[name], self._encoded(name)
        assert features.labels is not None
        with evaluating(head), autocast(features.value.device, self._precision):
            correct = head(features.at(scales)).argmax(dim=-1) == features.labels
        return Evaluation(correct.cpu().clone())

    def _encoded(self, name: str) -> TangentFeatures:
        if name not in self._features:
            device = device_of(self.encoder)
            batches = batches_of(self.encoder, self.splits[name], device=device, **self._options)
            with autocast(device, self._precision):
                self._features[name] = TangentFeatures(self.encoder, batches, self.taus)
            self._advance(len(self.splits[name]))
        return self._features[name]


def search_scale(
    evaluate: LinearizedEvaluator,
    scales: Sequence[float] = SCALES,
    *,
    reference: Mapping[str, Evaluation] | None,
    progress: Progress | None = None,
) -> SearchResult:
    """Choose the scale that all task vectors share, as `line_search` does for task arithmetic.

    Args:
        evaluate: Of VALIDATION images. The sum of the task vectors as its only one costs a T-th of all of them.
        scales: The grid.
        reference: As `line_search`'s.
        progress: Shows a bar.
    """
    count = len(evaluate.taus)
    return line_search(
        {}, [], evaluate, "task_arithmetic", {"scale": scales}, reference=reference, progress=progress,
        make_states=lambda points: ([point["scale"]] * count for point in points),
    )  # fmt: skip


def search_negation(
    evaluate: LinearizedEvaluator,
    *,
    target: str,
    control: str,
    scales: Sequence[float] = SCALES,
    keep: float = 0.95,
    progress: Progress | None = None,
) -> NegationResult:
    """Choose how much of the target's task vector to subtract, as `negation.search_negation` does.

    Args:
        evaluate: Of the target's task vector alone, and of VALIDATION images of target and control.
        target, control, scales, keep, progress: As there.

    Raises:
        ArgumentError: As there, or if the evaluator has more than one task vector.
    """
    if len(evaluate.taus) != 1:
        raise ArgumentError(f"evaluate must have the target's task vector alone, got {len(evaluate.taus)}")
    return search_scale_of_negation(
        lambda scale: evaluate([-scale]), target=target, control=control, scales=scales, keep=keep, progress=progress
    )


def compare_posthoc(
    encoder: nn.Module,
    heads: Mapping[str, nn.Module],
    splits: Mapping[str, data.Split],
    taus: Mapping[str, Any],
    *,
    progress: Progress = SILENT,
    **options: Any,
) -> dict[str, tuple[Evaluation, Evaluation]]:
    """Test linearized behaviour: every fine-tuned model on its own task, and its linearization there.

    Args:
        encoder: The pre-trained encoder, where the linearization is taken; not changed.
        heads: Task name -> head.
        splits: Task name -> images.
        taus: Task name -> task vector, dense or sparse, whose ``apply`` gives the fine-tuned state.
        progress: Shows a bar.
        **options: batch_size, image_size and precision as for `evaluate`.

    Returns:
        Task name -> (evaluation at theta_0 + tau, evaluation of f(x; theta_0) + J tau), image by image comparable.
    """
    base = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
    scratch, found = copy.deepcopy(encoder), {}
    for name in progress.track(list(taus), "linearize post hoc"):
        only = ({name: heads[name]}, {name: splits[name]})
        ordinary = StateEvaluator(scratch, *only, **options)(taus[name].apply(base))[name]
        found[name] = ordinary, LinearizedEvaluator(encoder, *only, [taus[name]], **options)([1.0])[name]
    return found
