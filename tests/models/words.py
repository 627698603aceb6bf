"""A tokenizer of a few words, in the shape of BERT's: [PAD] 0, [CLS] 1, [SEP] 2."""

from __future__ import annotations

from typing import Any

from taskarith_fast.models import Tokenizer
from tests.models.language import VOCABULARY

ANIMALS = ("cat", "dog", "cow", "hen", "pig", "fox")
THINGS = ("cup", "box", "pen", "bag", "jar", "hat")


def tokenizer(extra: int = 0, **options: Any) -> Tokenizer:
    """Whole words as tokens; `extra` more ids than it would have, from VOCABULARY on."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    names = ["[PAD]", "[CLS]", "[SEP]", *ANIMALS, *THINGS, "big", "small", "old", "new", "[UNK]"]
    ids = {name: place for place, name in enumerate(names)} | ({"extra": extra} if extra else {})
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return Tokenizer(backend, **options)


__all__ = ["ANIMALS", "THINGS", "VOCABULARY", "tokenizer"]
