"""Batches of token ids, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from taskarith_fast.data.batches import check_pass, ordered, part_of
from taskarith_fast.data.task import Split
from taskarith_fast.data.text import Example
from taskarith_fast.errors import DataError


class Encoding(Protocol):
    """What makes token ids: a `models.Tokenizer`."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]: ...

    def check(self, examples: Sequence[Example]) -> int: ...


def text_batches(
    split: Split,
    *,
    tokenizer: Encoding,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    device: str | torch.device = "cpu",
    skip: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Iterate once over a split of texts; a batch is padded to its longest text.

    Args:
        split: The texts.
        tokenizer: Makes token ids of them, those of the model.
        batch_size, shuffle, seed, epoch, device, skip, part: As for `batches`.

    Yields:
        Tensors by the names of the model's arguments, batch first, and labels int64 [B].

    Raises:
        ArgumentError: As `batches`, or if a text of the split is over the tokenizer's limit.
        DataError: If the split is one of images.
    """
    check_pass(batch_size, seed, epoch, skip, part)
    check_texts(split, tokenizer)
    return _iterate(split, tokenizer, batch_size, ordered(len(split), shuffle, seed, epoch)[0], device, skip, part)


def check_texts(split: Split, tokenizer: Encoding) -> int:
    """Refuse a split of images, and texts over the limit; returns how many are over it where the tokenizer cuts them.

    Raises:
        ArgumentError: If a text is over the limit.
        DataError: If the split is one of images.
    """
    if not isinstance(split.get([0])[0], list):
        raise DataError("the task must be one of texts for a model that reads texts, got images")
    return tokenizer.check(split.get(range(len(split)))[0])


def _iterate(
    split: Split,
    tokenizer: Encoding,
    batch_size: int,
    order: Tensor,
    device: str | torch.device,
    skip: int,
    part: tuple[int, int],
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    for indices in order.split(batch_size)[skip:]:
        examples, labels = split.get(indices[part_of(len(indices), part)])
        yield {name: t.to(device) for name, t in tokenizer(examples).items()}, labels.to(device)
