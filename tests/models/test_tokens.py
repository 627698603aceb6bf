"""Tokenizers: padding, limits, answers, and whether they are the model's."""

from __future__ import annotations

import pytest

from taskarith_fast.data import Example
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models import give_tokenizer, parse_tokenizer
from tests.models.language import tiny_language_model
from tests.models.words import VOCABULARY, tokenizer


def test_texts_are_padded_and_masked() -> None:
    batch = tokenizer()(["cat", "cat dog cow"])
    assert batch["input_ids"].tolist() == [[1, 3, 2, 0, 0], [1, 3, 4, 5, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert "answers" not in batch


def test_choices_become_answers_padded_with_what_marks_absence() -> None:
    batch = tokenizer(answers=True)([Example("cat", ("dog", "cat cow")), Example("cat", ("dog", "dog", "cow"))])
    assert batch["answers"].shape == (2, 3, 4)
    assert batch["answers"][0].tolist() == [[1, 4, 2, -100], [1, 3, 5, 2], [-100] * 4]
    plain = tokenizer(answers=True, end_answers=False)([Example("cat", ("dog", "cat cow"))])
    assert plain["answers"].tolist() == [[[4, -100], [3, 5]]]


def test_texts_over_the_limit_are_refused_unless_cut_and_counted() -> None:
    long = ["cat " * 30, "dog"]
    with pytest.raises(ArgumentError, match=r"at most 8 tokens, got 32 in 'cat cat .*; ask for truncation"):
        tokenizer(max_length=8)(long)
    cutting = tokenizer(max_length=8, truncate=True)
    assert cutting(long)["input_ids"].shape == (2, 8)
    assert cutting(long)["input_ids"][0, -1] == 2  # the special token at the end stays
    assert cutting.truncated == 2
    cutting(["dog"])
    assert cutting.truncated == 2


def test_a_model_that_answers_needs_choices() -> None:
    with pytest.raises(ArgumentError, match="must come with its choices"):
        tokenizer(answers=True)(["cat"])


def test_a_model_takes_its_own_tokenizer_only() -> None:
    model = give_tokenizer(tiny_language_model("bert"), tokenizer())
    assert model.tokenizer.max_length == 20 and not model.tokenizer.answers
    assert give_tokenizer(tiny_language_model("t5"), tokenizer(max_length=9)).tokenizer.answers
    with pytest.raises(ArgumentError, match=r"has 61 ids, the model embeddings for 60 tokens"):
        give_tokenizer(tiny_language_model("bert"), tokenizer(extra=VOCABULARY))
    with pytest.raises(ArgumentError, match="must pad with the model's id 1, got 0"):
        give_tokenizer(tiny_language_model("roberta"), tokenizer())
    model.vocab_size = 30000
    with pytest.raises(ArgumentError, match="tokenizer must be the model's"):
        give_tokenizer(model, tokenizer())


def test_what_is_no_tokenizer_is_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"must be a tokenizer\.json") as error:
        parse_tokenizer(b"{}")
    assert "\n" not in str(error.value)
    with pytest.raises(ArgumentError, match="max_length must be at least 3"):
        tokenizer(max_length=2)
