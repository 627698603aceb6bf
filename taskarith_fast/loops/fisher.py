r"""Fisher diagonals of whole models: F_j = (1/n) sum_x E_y [ (d log p(y|x) / d theta_j)^2 ] (Matena 2022, section 3).

Squares are those of each sample's own gradient. One backward pass serves a batch, because samples do not interact, and
no parameter's gradient is ever formed: layers hand their inputs and output gradients to ``ops.fisher_diag_``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast.capture import observe
from taskarith_fast.errors import ArgumentError
from taskarith_fast.inputs import Inputs, moved, rows
from taskarith_fast.inputs import count as size_of
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.scoring import Scoring, cotangents
from taskarith_fast.ops import fisher_diag_, fisher_diag_elementwise_
from taskarith_fast.progress import SILENT, Progress


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    labels: str = "exact",
    target: str = "logprob",
    head: Callable[[Tensor], Tensor] | None = None,
    names: Iterable[str] | None = None,
    seed: int = 0,
    batch_split: int | None = None,
    checkpoint_activations: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Average the squared per-sample gradients of a classifier's outputs over images.

    Memory: one float32 a parameter observed, and the activations of one forward pass.

    Args:
        model: Maps images [B, 3, H, W] to logits [B, C], or to features if `head` is given; see ``capture.observe``
            for the models that are understood. It is run in evaluation mode and left as it was.
        batches: Yields images [B, 3, H, W], normalised as the model wants them, or texts as a dict of what it takes, or
            tuples (images, labels, ...).
        labels: Over which classes: "exact" (the expectation over p(y|x), C backward passes), "sampled" (one class drawn
            from p(y|x) for each image, one pass), "label" (the given one: the empirical Fisher). "mergelm" is what
            published merging code computes, the square of the batch's summed gradient of sum_c sqrt(p_c) log p_c
            over the number of images: no Fisher diagonal, for comparison only.
        target: "logprob" (log p_y), or "logit" (z_y itself, as the code of TaLoS has it).
        head: Maps features to logits; its parameters are not observed.
        names: Parameters of the model to observe; None means all.
        seed: Seed of the sampled classes; image i of the run has the same draw whatever the batches' sizes.
        batch_split: Most images a forward pass; None takes the batches as they come. No effect but rounding, except
            for "mergelm", where it is refused.
        checkpoint_activations: Compute the transformer blocks twice, and keep only their inputs.
        progress: Shows a bar.

    Returns:
        Name -> shape of the parameter, float32, not negative.

    Raises:
        ArgumentError: If an argument is out of its domain, a parameter is used in a way that no rule covers, there is
            no image, or logits are not finite.
    """
    scoring = Scoring(labels, target, batch_split, checkpoint_activations)
    own = dict(model.named_parameters())
    squares = Squares({name: own[name] for name in (own if names is None else names) if name in own})
    images = add_squares(
        model, batches, squares, scoring=scoring, head=head, names=names, seed=seed, progress=progress or SILENT
    )
    for name, fisher in squares.fisher.items():
        if not bool(fisher.div_(images).isfinite().all()):
            raise ArgumentError(f"{name}: its Fisher diagonal must be finite, got NaN or infinity; look at the weights")
    return squares.fisher


class Squares:
    """Sums of squared per-sample gradients, by parameter; an observer for ``capture.observe``."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.fisher = {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in like.items()}

    def dense(self, name: str, x: Tensor, grad_y: Tensor) -> None:
        fisher_diag_(self.fisher[name], x, grad_y)

    def elementwise(self, name: str, grad_y: Tensor, x: Tensor | None) -> None:
        fisher_diag_elementwise_(self.fisher[name], grad_y, x)

    def looked_up(self, name: str, ids: Tensor, grad_y: Tensor) -> None:
        """The rows that a sample looked up, each once."""
        height = len(self.fisher[name])
        ids, grad_y = ids.flatten(1), grad_y.flatten(1, -2).float()
        keys = torch.arange(len(ids), device=ids.device)[:, None] * height + ids
        found, place = keys.flatten().unique(return_inverse=True)
        sums = grad_y.new_zeros(len(found), grad_y.shape[-1]).index_add_(0, place, grad_y.flatten(0, 1))
        self.fisher[name].index_add_(0, found % height, sums.square())


def add_squares(
    model: nn.Module,
    batches: Iterable[Any],
    squares: Squares,
    *,
    scoring: Scoring,
    head: Callable[[Tensor], Tensor] | None = None,
    names: Iterable[str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> int:
    """Add every image's squares, and return how many images there were; arguments as fisher_diagonal and observe."""
    generator = torch.Generator().manual_seed(seed)
    device, count = device_of(model), 0
    whole = scoring.labels == "mergelm"
    options: dict[str, Any] = {"checkpoint": scoring.checkpoint, "whole_batch": whole, "tensors": tensors}
    with observe(model, squares, names=names, **options) as capture:
        for images, given in progress.track(
            parts_of(batches, scoring.batch_split), "fisher", _length(batches, scoring)
        ):
            outputs = capture.forward(moved(images, device))
            logits = outputs if head is None else head(outputs)
            check_logits(logits, size_of(images))
            passes = scoring.passes(logits.shape[1])
            for i, cotangent in enumerate(cotangents(logits.detach(), given, scoring, generator), start=1):
                capture.backward(logits, cotangent, retain_graph=i < passes)
            count += size_of(images)
    if not count:
        raise ArgumentError("batches must yield at least one image, got none; a generator can be used only once")
    return count


def parts_of(batches: Iterable[Any], split: int | None) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Images (or texts) and labels of the batches, at most `split` at a time."""
    for batch in batches:
        images, labels = (batch, None) if isinstance(batch, (Tensor, Mapping)) else (batch[0], batch[1])
        count = size_of(images)
        for start in range(0, count, split or max(1, count)):
            part = slice(start, start + (split or count))
            yield rows(images, part), None if labels is None else labels[part]


def _length(batches: Any, scoring: Scoring) -> int | None:
    return len(batches) if scoring.batch_split is None and hasattr(batches, "__len__") else None


def check_logits(logits: Any, count: int) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != count:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ArgumentError(f"model (and head) must map images to logits [B={count}, C], got {found}")
    finite = logits.isfinite()
    # A choice that a text lacks has -inf.
    if not bool((finite | logits.isneginf()).all() and finite.any(dim=1).all()):
        raise ArgumentError("logits must be finite, got NaN or infinity; look at the weights and the images")
