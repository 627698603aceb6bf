r"""How a model's sensitivity to its parameters changes in training (TaLoS 2025, section 3).

    change(i) = E_x || d log p(y|x, theta_i) / d theta  -  d log p(y|x, theta_0) / d theta ||^2

Near 0 the model stays linear in its parameters: its gradients are those of the start. Of a linearized model it is 0.
No per-image gradient exists: a layer's difference of two gradients is one sum over the tokens of both passes,
sum_s g_s x_s^T - sum_s g0_s x0_s^T, whose squares ``ops.fisher_diag_`` adds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast.capture import Observer, observe
from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.inputs import Inputs, count, moved
from taskarith_fast.loops.fisher import Squares, check_logits, parts_of
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.scoring import Scoring, cotangents, sample_classes
from taskarith_fast.progress import SILENT, Progress

LABELS = ("sampled", "label")


@dataclass(frozen=True)
class SensitivityChange:
    """Means over images of squared norms of gradients."""

    change: tuple[float, ...]
    """Of the differences to the gradients at the start, one a state."""
    start: float
    """Of the gradients at the start."""

    @property
    def relative(self) -> tuple[float, ...]:
        """change / start: what the paper's figure calls relative; its formula is `change`."""
        return tuple(change / self.start for change in self.change)


def sensitivity_change(
    model: nn.Module,
    batches: Iterable[Any],
    states: Sequence[Mapping[str, Tensor]],
    *,
    head: Callable[[Tensor], Tensor] | None = None,
    labels: str = "sampled",
    target: str = "logprob",
    names: Iterable[str] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> SensitivityChange:
    """Measure how far per-image gradients move from those of a model to those of later states of it.

    Args:
        model: theta_0; maps images [B, 3, H, W] to logits, or to features if `head` is given. See ``capture.observe``
            for the models that are understood. It is run in evaluation mode and left as it was.
        batches: Yields images, normalised as the model wants them, or tuples (images, labels, ...).
        states: States of the model, such as the snapshots of a run; a parameter that one lacks is the model's.
        head: Maps features to logits; its parameters are not observed.
        labels: "sampled" (y drawn from p(y|x, theta_0), once for all states) or "label" (the given one).
        target: "logprob" (log p_y), or "logit" (z_y itself).
        names: Parameters to observe; None means all.
        seed: Seed of the sampled classes.
        progress: Shows a bar.

    Returns:
        One change a state, and what they are relative to.

    Raises:
        ArgumentError: If an argument is out of its domain, a parameter is used in a way that no rule covers, there is
            no image, or logits are not finite.
    """
    check_choice("labels", labels, LABELS)
    scoring, generator = Scoring("label", target), torch.Generator().manual_seed(seed)
    own = dict(model.named_parameters())
    wanted = list(own if names is None else names)
    squares = Squares({name: own[name] for name in wanted if name in own})
    totals, images_seen = [0.0] * (1 + len(states)), 0
    device = device_of(model)

    def gradients(images: Inputs, given: Tensor | None, state: Mapping[str, Tensor], observer: Observer) -> Tensor:
        """One pass, told to the observer; the classes whose log-probabilities were differentiated."""
        tensors = {name: state[name].to(parameter) for name, parameter in own.items() if name in state}
        with observe(model, observer, names=wanted, tensors=tensors) as capture:
            outputs = capture.forward(images)
            logits = outputs if head is None else head(outputs)
            check_logits(logits, count(images))
            if given is None and labels == "sampled":
                given = sample_classes(logits.detach().float().softmax(dim=-1), generator)
            (cotangent,) = cotangents(logits.detach(), given, scoring, generator)
            capture.backward(logits, cotangent)
        assert given is not None
        return given

    for images, given in progress.track(parts_of(batches, None), "sensitivity"):
        images = moved(images, device)
        start = _Recorder(squares)
        classes = gradients(images, given if labels == "label" else None, {}, start)
        totals[0] += _taken(squares)
        for i, state in enumerate(states, start=1):
            gradients(images, classes, state, _Difference(squares, start))
            totals[i] += _taken(squares)
        images_seen += count(images)
    if not images_seen:
        raise ArgumentError("batches must yield at least one image, got none; a generator can be used only once")
    means = [total / images_seen for total in totals]
    return SensitivityChange(tuple(means[1:]), means[0])


class _Recorder:
    """Adds the squares of gradients and keeps what they are made of, in the order in which it comes."""

    def __init__(self, squares: Squares) -> None:
        self._squares = squares
        self.told: dict[str, list[tuple[Tensor, Tensor | None]]] = defaultdict(list)

    def dense(self, name: str, x: Tensor, grad_y: Tensor) -> None:
        self.told[name].append((grad_y, x))
        self._squares.dense(name, x, grad_y)

    def elementwise(self, name: str, grad_y: Tensor, x: Tensor | None) -> None:
        self.told[name].append((grad_y, x))
        self._squares.elementwise(name, grad_y, x)

    def looked_up(self, name: str, ids: Tensor, grad_y: Tensor) -> None:
        self.told[name].append((grad_y, ids))
        self._squares.looked_up(name, ids, grad_y)


class _Difference:
    """Adds the squares of differences to the gradients that a recorder keeps: their tokens, with the other sign."""

    def __init__(self, squares: Squares, start: _Recorder) -> None:
        self._squares = squares
        self._start = {name: iter(told) for name, told in start.told.items()}

    def dense(self, name: str, x: Tensor, grad_y: Tensor) -> None:
        grad0, x0 = next(self._start[name])
        assert x0 is not None
        self._squares.dense(name, _beside(x, x0, 1), _beside(grad_y, -grad0, 1))

    def elementwise(self, name: str, grad_y: Tensor, x: Tensor | None) -> None:
        grad0, x0 = next(self._start[name])
        dims = self._squares.fisher[name].dim()
        both = None if x is None or x0 is None else _beside(x, x0, dims)
        self._squares.elementwise(name, _beside(grad_y, -grad0, dims), both)

    def looked_up(self, name: str, ids: Tensor, grad_y: Tensor) -> None:
        grad0, ids0 = next(self._start[name])
        assert ids0 is not None
        self._squares.looked_up(name, _beside(ids, ids0, 0), _beside(grad_y, -grad0, 1))


def _beside(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """The tokens of both, [B, 2 S, ...]; the last `dims` dimensions are a token's."""
    a, b = (t.reshape(len(t), -1, *t.shape[t.dim() - dims :]) for t in (a, b))
    return torch.cat([a, b], dim=1)


def _taken(squares: Squares) -> float:
    """The sum of all squares, which begin again at 0."""
    total = sum(float(fisher.sum(dtype=torch.float64)) for fisher in squares.fisher.values())
    for fisher in squares.fisher.values():
        fisher.zero_()
    return total
