"""Tasks of texts and a text encoder small enough to train in a test: which word says which class."""

from __future__ import annotations

import random
from functools import cache

from torch import nn

from taskarith_fast.data import Task, TextSplit
from taskarith_fast.models import give_tokenizer
from tests.models.language import tiny_language_model
from tests.models.words import ANIMALS, THINGS, tokenizer

WORDS = {"animals": ANIMALS[:3], "things": THINGS[:4]}


@cache
def text_task(name: str = "animals", count: int = 48) -> Task:
    """Texts such as "big old cat", whose class is the last word; the adjectives are random."""
    words, adjectives = WORDS[name], ("big", "small", "old", "new")

    def split(shift: int) -> TextSplit:
        labels = [i % len(words) for i in range(count)]
        chance = random.Random(shift)
        before = [" ".join(chance.choices(adjectives, k=chance.randint(1, 4))) for _ in labels]
        return TextSplit([f"{b} {words[y]}" for b, y in zip(before, labels, strict=True)], labels)

    splits = {split_name: split(shift) for shift, split_name in enumerate(("train", "val", "test"))}
    return Task(name, words, splits, "CC0-1.0", "made up")


def text_encoder() -> nn.Module:
    """A random BERT of two blocks with a tokenizer of whole words."""
    return give_tokenizer(tiny_language_model("bert"), tokenizer())
