"""Language models by name: text encoders, and sequence-to-sequence models that score answers.

A batch of texts is a dict of tensors, batch first, and a model takes it as named arguments, ``model(**batch)``:

    input_ids       int64 [B, S]      token ids, padded
    attention_mask  int64 [B, S]      1 = token, 0 = padding; left out, all are tokens
    answers         int64 [B, C, L]   sequence-to-sequence only: the C answers of each text, padded with -100

A text encoder (``bert:``) returns features [B, feature_dim]. A sequence-to-sequence model (``t5:``) returns
log-probabilities [B, C]: entry (b, c) is the sum over the tokens of answer c of log p(token | text, tokens before it),
with no normalisation by length. They serve as logits of a classifier over the answers. The texts are encoded once, and
the answers of a text are decoded together.

Parameters have the library's own names. ``maskable_names`` and ``linear_layer_names`` know them; embeddings, relative
position biases and the output projection (lm_head) are not maskable. Tied tensors are one parameter.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from taskarith_fast.errors import ArgumentError, BackendError

FAMILIES = {
    "bert:REPOSITORY_OR_FOLDER": "for example bert:sentence-transformers/all-MiniLM-L6-v2",
    "t5:REPOSITORY_OR_FOLDER": "for example t5:google/t5-v1_1-small",
}
POOLINGS = ("mean", "cls")


def load_language_model(
    name: str, *, pretrained: bool = True, pooling: str = "mean", depth: int | None = None
) -> nn.Module:
    """Build a language model by name.

    Args:
        name: "bert:" (BERT, RoBERTa, DistilBERT) or "t5:" (T5 1.0, 1.1 and FLAN) and a repository of Hugging Face or
            a folder in its format.
        pretrained: Load trained weights; False draws random ones, and works offline for a folder with a config.json,
            the commonest repositories and a model type ("bert:bert", "t5:t5").
        pooling: How a text encoder makes one feature vector of its tokens: "mean" of those the attention mask has, or
            the first one, "cls".
        depth: Number of transformer blocks to keep, from the first, in each stack; all if None.

    Returns:
        Module in training mode with the contract of this module and the attributes ``vocab_size``, ``pad_id``,
        ``max_length`` (None where positions are relative), ``normalize_features`` (False), and, of an encoder,
        ``feature_dim``.

    Raises:
        ArgumentError: If no family or model has this name, or a number or word is out of its domain.
        CheckpointError: If the weights are not here and cannot be fetched.
        BackendError: If transformers is not installed.
    """
    family, _, model = name.partition(":")
    if family not in ("bert", "t5") or not model:
        known = "; ".join(f"{form} ({text})" for form, text in FAMILIES.items())
        raise ArgumentError(f"name must have one of the forms {known}; got {name!r}")
    return _library().load(family, model, pretrained=pretrained, pooling=pooling, depth=depth)


def language_model(config: Any, *, pooling: str = "mean") -> nn.Module:
    """Build a language model with random weights from a configuration of transformers.

    Args:
        config: BertConfig, RobertaConfig, DistilBertConfig or T5Config; it is copied.
        pooling: As load_language_model's.

    Returns:
        As load_language_model.

    Raises:
        ArgumentError: If the configuration is of another type.
    """
    return _library().build(config, pooling)


def _library() -> Any:
    # transformers is slow to import, so it is imported on first use.
    try:
        return importlib.import_module("taskarith_fast.models.hf_language")
    except ImportError as error:
        raise BackendError(
            f"language models need a library that is not installed ({error}); run `pip install transformers`"
        ) from error
