r"""Choose which weights a sparse fine-tuning trains: TaLoS (ICLR 2025), LoTA (Panda 2024), by magnitude, at random.

TaLoS keeps the weights to which the model's outputs are least sensitive. The score of weight j is its Fisher diagonal;
in round r of R the density^(r/R) lowest are kept, and those dropped so far are multiplied by a small factor in later
rounds' forward passes and no longer ranked (section 4.2). After R rounds exactly int(density N) of N are left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.loops.fisher import Squares, add_squares
from taskarith_fast.loops.scoring import TARGETS, Scoring
from taskarith_fast.masks import Masks
from taskarith_fast.models.maskable import maskable_names
from taskarith_fast.ops import bottom_k_mask, where_bits
from taskarith_fast.progress import SILENT, Progress

METHODS = ("talos", "lota", "magnitude", "random")


def calibrate(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    density: float = 0.1,
    method: str = "talos",
    rounds: int = 4,
    head: Callable[[Tensor], Tensor] | None = None,
    score: str = "logprob",
    labels: str = "sampled",
    soft_mask: float = 0.01,
    finetuned: Mapping[str, Tensor] | None = None,
    largest: bool = True,
    freeze_unmaskable: bool = True,
    maskable: Iterable[str] | None = None,
    seed: int = 0,
    batch_split: int | None = None,
    checkpoint_activations: bool = False,
    progress: Progress | None = None,
) -> Masks:
    """Choose exactly int(density N) of a model's N maskable weights, over all layers at once.

    Of equal scores the first in the model's order is chosen. The model is not changed, not even while this runs: soft
    masks act on a copy of the weights. Memory: that copy and one float32 a maskable weight, and the activations of one
    forward pass; `batch_split` and `checkpoint_activations` bound the latter.

    Args:
        model: The pre-trained encoder (or classifier, if `head` is None); see ``capture.observe``.
        batches: As fisher_diagonal's, used once a round: a list or a data loader, not a generator. The other methods
            need none.
        density: Fraction of the maskable weights to keep trainable, above 0 and at most 1.
        method: "talos" (least sensitive), "lota" (changed most by full fine-tuning), "magnitude" (largest), "random".
        rounds: Rounds R of "talos".
        head: Maps features to logits.
        score: "logprob" (paper) or "logit" (code): whose gradient "talos" squares.
        labels: As fisher_diagonal's.
        soft_mask: What dropped weights are multiplied by, in [0, 1]; the paper's 0.01, or 0.1 as in the code.
        finetuned: The fine-tuned state for "lota"; tensors are looked up by the model's names.
        largest: For "magnitude": keep the largest, or the smallest if False.
        freeze_unmaskable: Leave the other parameters out of the masks, so that they are frozen (paper); False gives
            them masks that are True everywhere (code). They do not count for the density.
        maskable: Names of the maskable parameters; None takes those of ``models.maskable``.
        seed: Seed of sampled labels and of "random".
        batch_split: As fisher_diagonal's.
        checkpoint_activations: As fisher_diagonal's.
        progress: Shows bars.

    Returns:
        Masks in the model's order, True = trained. A tensor of which nothing is kept has a mask without True.

    Raises:
        ArgumentError: If an argument is out of its domain or missing, nothing would be kept, or as fisher_diagonal.
    """
    check_choice("method", method, METHODS)
    if (finetuned is not None) != (method == "lota"):
        raise ArgumentError(f"finetuned must be given for the method 'lota', and for it only; got method={method!r}")
    own = dict(model.named_parameters())
    weights = _maskable(own, maskable)
    total = sum(w.numel() for w in weights.values())
    keep = _count(density, total)
    if method == "talos":
        check_choice("score", score, TARGETS)
        scoring = Scoring(labels, score, batch_split, checkpoint_activations)
        _check_rounds(batches, rounds, soft_mask)
        bits = _talos(
            model, batches, weights, [int(density ** (r / rounds) * total) for r in range(1, rounds)] + [keep],
            soft_mask=soft_mask, seed=seed, scoring=scoring, head=head, progress=progress or SILENT,
        )  # fmt: skip
    else:
        scores = dict(_scores(method, weights, finetuned, seed))
        bits = _choose(scores, keep, largest=largest or method == "lota")
    chosen = Masks(dict(zip(weights, bits, strict=True)), {name: w.shape for name, w in weights.items()})
    return chosen if freeze_unmaskable else _with_all_of(own, chosen)


def _talos(
    model: nn.Module,
    batches: Any,
    weights: Mapping[str, Tensor],
    counts: Sequence[int],
    *,
    soft_mask: float,
    seed: int,
    scoring: Scoring,
    head: Callable[[Tensor], Tensor] | None,
    progress: Progress,
) -> list[Tensor]:
    """Packed masks of the last of `counts`, each of them chosen among those of the one before."""
    kept: list[Tensor] | None = None
    for r, count in enumerate(progress.track(counts, "round")):
        squares = Squares(weights)
        add_squares(
            model, batches, squares, scoring=scoring, head=head, names=weights, seed=seed + r, progress=progress,
            tensors=None if kept is None else _softly_masked(weights, kept, soft_mask),
        )  # fmt: skip
        dropped = None if kept is None else [~bits for bits in kept]
        kept = _choose(squares.fisher, count, excluded=dropped)
    return kept or []


def _choose(scores: Mapping[str, Tensor], count: int, **options: Any) -> list[Tensor]:
    for name, score in scores.items():
        if bool(score.isnan().any()):
            raise ArgumentError(f"{name}: its score must not be NaN; look for NaN in its weights or in the images")
    return bottom_k_mask(list(scores.values()), count, **options)


def _softly_masked(weights: Mapping[str, Tensor], kept: list[Tensor], factor: float) -> dict[str, Tensor]:
    """Copies of the weights in which those not kept are multiplied by `factor`."""
    own = [w.detach() for w in weights.values()]
    return dict(zip(weights, where_bits(kept, own, [w * factor for w in own]), strict=True))


def _scores(
    method: str, weights: Mapping[str, Tensor], finetuned: Mapping[str, Tensor] | None, seed: int
) -> Iterator[tuple[str, Tensor]]:
    for name, weight in weights.items():
        if method == "magnitude":
            yield name, weight.detach().float().abs()
        elif method == "random":
            yield name, _random(name, weight, seed)
        elif finetuned is not None:
            yield name, (_tensor(finetuned, name, weight).float() - weight.detach().float()).abs()


def _random(name: str, weight: Tensor, seed: int) -> Tensor:
    """Uniform numbers that depend on the seed, the name and the shape alone."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little", signed=True)
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(key)).to(weight.device)


def _tensor(state: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in state:
        raise ArgumentError(f"finetuned: it must have {name}, one of the model's parameters, but has not")
    if state[name].shape != like.shape:
        raise ArgumentError(f"finetuned: {name} must have shape {list(like.shape)}, got {list(state[name].shape)}")
    return state[name].to(like.device)


def _maskable(own: Mapping[str, Tensor], names: Iterable[str] | None) -> dict[str, Tensor]:
    chosen = set(maskable_names(own) if names is None else names)
    for name in sorted(chosen):
        if name not in own:
            raise ArgumentError(
                f"maskable: {name} is no parameter of the model; expected names as {next(iter(own), '')}"
            )
    return {name: parameter for name, parameter in own.items() if name in chosen}


def _count(density: float, total: int) -> int:
    if not 0 < density <= 1:
        raise ArgumentError(f"density must be above 0 and at most 1, got {density}")
    if not (keep := int(density * total)):
        raise ArgumentError(f"density {density} keeps none of {total} maskable weights; try {1 / max(total, 1):.2g}")
    return keep


def _check_rounds(batches: Iterable[Any] | None, rounds: int, soft_mask: float) -> None:
    if rounds < 1:
        raise ArgumentError(f"rounds must be at least 1, got {rounds}")
    if not 0 <= soft_mask <= 1:
        raise ArgumentError(f"soft_mask must be in [0, 1], got {soft_mask}")
    if batches is None:
        raise ArgumentError("batches must be given for the method 'talos', got none")
    if rounds > 1 and iter(batches) is batches:
        raise ArgumentError(f"batches must last for {rounds} rounds, got an iterator; use a list or a data loader")


def _with_all_of(own: Mapping[str, Tensor], chosen: Masks) -> Masks:
    """`chosen`, and masks that are True everywhere for the other parameters, in the model's order."""
    rest = Masks.full({name: p.detach() for name, p in own.items() if name not in chosen}, True)
    bits = {name: (chosen if name in chosen else rest).packed(name) for name in own}
    return Masks(bits, {name: p.shape for name, p in own.items()})
