"""Whether a model and a split belong together: images or texts, with answers or without, none too long."""

from __future__ import annotations

from typing import Any

from taskarith_fast import data
from taskarith_fast.errors import ArgumentError
from taskarith_fast.inputs import Inputs


def check_split(encoder: Any, split: data.Split) -> int:
    """Refuse a split that an encoder cannot take; returns how many of its texts will be cut.

    Raises:
        ArgumentError: If it has texts and the encoder reads images, or a text is over the limit and not to be cut.
        DataError: If it has images and the encoder reads texts.
    """
    if hasattr(encoder, "tokenizer"):
        return data.check_texts(split, encoder.tokenizer)
    if isinstance(split.get([0])[0], list):
        raise ArgumentError("encoder must have a tokenizer for a task of texts; see models.give_tokenizer")
    return 0


def scores_answers(encoder: Any) -> bool:
    """Whether a model scores the answers of each text, so that its heads are the identity."""
    return bool(getattr(getattr(encoder, "tokenizer", None), "answers", False))


def longest_sample(encoder: Any, split: data.Split) -> Inputs | None:
    """The longest text of a split as a batch of one; None for images."""
    if not hasattr(encoder, "tokenizer"):
        return None
    examples = split.get(range(len(split)))[0]
    return encoder.tokenizer([max(examples, key=lambda e: len(e.text.encode()))])
