"""Texts to token ids: the tokenizer of a model, with the model's limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, BackendError, CheckpointError

_ABSENT = -100  # padding of answers
_SPARE_IDS = 512  # embeddings that a model may have without tokens, to round its matrices up


class Tokenizer:
    """The tokenizer of one model.

    Calling it with examples, each a text or a pair (text, choices), gives what the model takes by name:
    ``input_ids`` and ``attention_mask``, int64 [B, S]; for a model that answers also ``answers``, int64 [B, C, L],
    padded with -100.

    Args:
        backend: A ``tokenizers.Tokenizer``.
        pad_id: The id behind the end of a text.
        max_length: Most tokens of a text, special ones included; None sets no limit.
        truncate: Cut texts over the limit and count them; False refuses them.
        answers: Make ids of the choices too.
        end_answers: Put the tokenizer's special tokens around an answer, such as the end of T5.
    """

    def __init__(
        self,
        backend: Any,
        *,
        pad_id: int = 0,
        max_length: int | None = None,
        truncate: bool = False,
        answers: bool = False,
        end_answers: bool = True,
    ) -> None:
        if max_length is not None and max_length < 3:
            raise ArgumentError(f"max_length must be at least 3, got {max_length}")
        backend.no_padding()
        backend.no_truncation()
        self._backend, self.pad_id, self.max_length, self.truncate = backend, pad_id, max_length, truncate
        self.answers, self.end_answers = answers, end_answers
        self.truncated = 0
        """Texts cut so far."""

    @property
    def vocab_size(self) -> int:
        """One above the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Encode examples.

        Raises:
            ArgumentError: If a text is over the limit and not to be cut, or a model that answers gets no choices.
        """
        pairs = [(e, ()) if isinstance(e, str) else (e[0], e[1]) for e in examples]
        ids = self._texts([text for text, _ in pairs])
        width = max(map(len, ids))
        batch = {
            "input_ids": torch.tensor([row + [self.pad_id] * (width - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        }
        return batch | {"answers": self._answers([choices for _, choices in pairs])} if self.answers else batch

    def check(self, examples: Iterable[Any]) -> int:
        """How many texts are over the limit, each of which will be cut.

        Raises:
            ArgumentError: If there is one, and texts are not to be cut; if a model that answers gets no choices.
        """
        examples = list(examples)
        if self.answers:
            _check_choices(() if isinstance(e, str) else e[1] for e in examples)
        if self.max_length is None:
            return 0
        # No token is shorter than a byte, so that shorter texts fit.
        least = self.max_length - self._backend.num_special_tokens_to_add(False)
        texts = [text for e in examples if len((text := e if isinstance(e, str) else e[0]).encode()) > least]
        return len(self._over(texts, [found.ids for found in self._backend.encode_batch(texts)]))

    def __deepcopy__(self, memo: Any) -> Tokenizer:
        """Copies of a model share its tokenizer, and its count."""
        return self

    def _texts(self, texts: list[str]) -> list[list[int]]:
        ids = [found.ids for found in self._backend.encode_batch(texts)]
        over = self._over(texts, ids)
        if not over:
            return ids
        self.truncated += len(over)
        self._backend.enable_truncation(self.max_length)
        try:
            for place, found in zip(over, self._backend.encode_batch([texts[p] for p in over]), strict=True):
                ids[place] = found.ids
        finally:
            self._backend.no_truncation()
        return ids

    def _over(self, texts: list[str], ids: list[list[int]]) -> list[int]:
        """Places of the texts that must be cut."""
        limit = self.max_length
        over = [place for place, row in enumerate(ids) if limit is not None and len(row) > limit]
        if over and not self.truncate:
            found = f"{len(ids[over[0]])} in {texts[over[0]][:40]!r}..."
            raise ArgumentError(
                f"text must have at most {limit} tokens, got {found}; ask for truncation (--truncate {limit})"
            )
        return over

    def _answers(self, choices: list[Sequence[str]]) -> Tensor:
        _check_choices(choices)
        flat = [choice for own in choices for choice in own]
        ids = iter([found.ids for found in self._backend.encode_batch(flat, add_special_tokens=self.end_answers)])
        rows = [[next(ids) for _ in own] for own in choices]
        shape = (len(rows), max(map(len, rows)), max(len(row) for own in rows for row in own))
        answers = torch.full(shape, _ABSENT)
        for b, own in enumerate(rows):
            for c, row in enumerate(own):
                answers[b, c, : len(row)] = torch.tensor(row)
        return answers


def _check_choices(choices: Iterable[Sequence[str]]) -> None:
    if not all(choices):
        raise ArgumentError("text must come with its choices for a model that answers; put the task in a template")


def parse_tokenizer(data: bytes, **options: Any) -> Tokenizer:
    """Make a tokenizer of the content of a tokenizer.json; `options` are Tokenizer's.

    Raises:
        BackendError: If the library tokenizers is absent.
        CheckpointError: If it is no such content.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise BackendError("tokenizers is not installed; run `pip install tokenizers`") from error
    try:
        backend = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"tokenizer must be a tokenizer.json ({str(error).splitlines()[0]})") from None
    return Tokenizer(backend, **options)


def library_tokenizer(name: str, **options: Any) -> Tokenizer:
    """The tokenizer of a repository of Hugging Face or a folder in its format; `options` are Tokenizer's.

    Raises:
        BackendError: If transformers is absent.
        CheckpointError: If there is none, or it cannot run fast.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise BackendError(f"tokenizers of {name} need transformers; run `pip install transformers`") from error
    try:
        found = AutoTokenizer.from_pretrained(name, use_fast=True)
        backend, pad_id = found.backend_tokenizer, found.pad_token_id
    except Exception as error:  # of many libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{name}: its tokenizer is not in the local cache and not to be had ({reason})") from None
    return Tokenizer(backend, pad_id=pad_id, **options)


def give_tokenizer(model: Any, tokenizer: Tokenizer) -> Any:
    """Let a model read texts by this tokenizer, as ``model.tokenizer``; returns the model.

    The limit of the model holds where it is below the tokenizer's.

    Raises:
        ArgumentError: If the tokenizer is of another model: the number of its ids is not that of the embeddings,
            or its padding is another.
    """
    if not 0 <= model.vocab_size - tokenizer.vocab_size <= _SPARE_IDS:
        raise ArgumentError(
            f"tokenizer must be the model's: it has {tokenizer.vocab_size} ids, "
            f"the model embeddings for {model.vocab_size} tokens"
        )
    if tokenizer.pad_id != model.pad_id:
        raise ArgumentError(f"tokenizer must pad with the model's id {model.pad_id}, got {tokenizer.pad_id}")
    limits = [limit for limit in (tokenizer.max_length, getattr(model, "max_length", None)) if limit is not None]
    tokenizer.max_length = min(limits, default=None)
    tokenizer.answers = not hasattr(model, "feature_dim")
    model.tokenizer = tokenizer
    return model
