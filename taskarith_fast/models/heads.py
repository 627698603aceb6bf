"""Linear heads on an encoder's features: random, learned elsewhere, or written by a text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.linear import linear

Template = str | Callable[[str], str]

_CLIP_VOCABULARY = 49408
_TEXTS_A_BATCH = 256


class Head(nn.Module):
    """A linear classifier, logits = x W^T + b, of features or of features on the unit sphere.

    Args:
        weight: Class vectors, shape [C, D].
        bias: Shape [C], or None.
        normalize: Divide each feature vector by its length first, as CLIP's heads expect.

    Raises:
        ArgumentError: If the shapes do not fit.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, normalize: bool = False) -> None:
        super().__init__()
        if weight.dim() != 2:
            raise ArgumentError(f"weight must have shape [C, D], got {list(weight.shape)}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ArgumentError(f"bias must have shape [C={len(weight)}], got {list(bias.shape)}")
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.normalize = normalize

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape [B, C], of features, shape [B, D]."""
        if self.normalize:
            features = F.normalize(features, dim=-1)
        return linear(features, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Say the sizes when the head is printed."""
        classes, features = self.weight.shape
        return f"{features} -> {classes}, bias={self.bias is not None}, normalize={self.normalize}"


def random_head(feature_dim: int, classes: int, *, seed: int, bias: bool = True, normalize: bool = False) -> Head:
    """Draw a head as a fresh `nn.Linear` would be, uniform in +-1/sqrt(D), from a generator of its own.

    Args:
        feature_dim: D.
        classes: C.
        seed: Seed of the draw; the global generator is not touched.
        bias: Draw a bias too.
        normalize: As Head's.

    Raises:
        ArgumentError: If a size is below 1.
    """
    if feature_dim < 1 or classes < 1:
        raise ArgumentError(f"feature_dim and classes must be at least 1, got {feature_dim} and {classes}")
    generator = torch.Generator().manual_seed(seed)
    bound = feature_dim**-0.5
    weight, offset = (
        torch.empty(shape).uniform_(-bound, bound, generator=generator)
        for shape in ((classes, feature_dim), (classes,))
    )
    return Head(weight, offset if bias else None, normalize)


def zero_shot_head(
    model: Any,
    classnames: Sequence[str],
    templates: Sequence[Template],
    tokenizer: Callable[[list[str]], Tensor] | None = None,
    *,
    normalize_mean: bool = True,
) -> Head:
    """Let a CLIP model's text tower write the head of a classification task.

    The class vector is the mean over the templates of the normalised text embeddings, normalised again, times
    exp(logit_scale). The head normalises image features, so that logits are scaled cosines (Radford 2021,
    section 3.1).

    Args:
        model: Model with encode_text(tokens) -> [n, D] and logit_scale, such as open_clip's CLIP.
        classnames: C names.
        templates: Functions from a class name to a sentence, or format strings such as "a photo of a {}.".
        tokenizer: Function from sentences to tokens [n, L]; None takes CLIP's own.
        normalize_mean: Normalise the mean once more; False leaves it as it is.

    Returns:
        Head with float32 weight [C, D] on the model's device, no bias, normalize=True.

    Raises:
        ArgumentError: If there is no class or template, if the model has no text tower, or if it does not
            use CLIP's vocabulary and no tokenizer is given.
    """
    for argument, values in (("classnames", classnames), ("templates", templates)):
        if isinstance(values, str) or not values:
            raise ArgumentError(f"{argument} must be a sequence of at least one, got {values!r}")
    if not (hasattr(model, "encode_text") and hasattr(model, "logit_scale")):
        raise ArgumentError(
            f"model must have encode_text and logit_scale, and {type(model).__name__} has not; "
            "an image encoder alone cannot write a zero-shot head"
        )
    tokenizer = tokenizer or _clip_tokenizer(model)
    sentences = [_fill(template, name) for name in classnames for template in templates]
    with torch.no_grad():
        embeddings = _encode(model, tokenizer, sentences).view(len(classnames), len(templates), -1)
        means = embeddings.mean(dim=1)  # [C, D]
        if normalize_mean:
            means = F.normalize(means, dim=-1)
        return Head(model.logit_scale.float().exp() * means, normalize=True)


def _encode(model: Any, tokenizer: Callable[[list[str]], Tensor], sentences: list[str]) -> Tensor:
    """Return normalised float32 text embeddings, shape [n, D], and leave the model's mode as it was."""
    training = model.training
    model.eval()
    try:
        batches = [sentences[i : i + _TEXTS_A_BATCH] for i in range(0, len(sentences), _TEXTS_A_BATCH)]
        device = model.logit_scale.device
        encoded = [model.encode_text(tokenizer(batch).to(device)).float() for batch in batches]
        return F.normalize(torch.cat(encoded), dim=-1)
    finally:
        model.train(training)


def _fill(template: Template, classname: str) -> str:
    return template(classname) if callable(template) else template.format(classname)


def _clip_tokenizer(model: Any) -> Callable[[list[str]], Tensor]:
    import open_clip

    if getattr(model, "vocab_size", None) != _CLIP_VOCABULARY:
        raise ArgumentError(
            f"tokenizer must be given for a text tower with other than CLIP's {_CLIP_VOCABULARY} tokens, "
            f"got vocab_size={getattr(model, 'vocab_size', None)}; open_clip.get_tokenizer(NAME) makes one"
        )
    return open_clip.tokenizer.SimpleTokenizer(context_length=model.context_length)
