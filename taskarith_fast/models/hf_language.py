"""Language models of Hugging Face; each is a subclass of its model, so the state dict has its names.

See ``models.language`` for what they take and return.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import BertModel, DistilBertModel, RobertaModel, T5ForConditionalGeneration
from transformers.initialization import no_init_weights

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.models.fast import use_fast_linear
from taskarith_fast.models.hf_weights import absent, load_weights
from taskarith_fast.models.language import POOLINGS

_IGNORED = -100  # marks padding in answers, as transformers has it in labels


class TextEncoder(nn.Module):
    """What the text encoders share: texts to features [B, feature_dim]."""

    pooling: str
    max_length: int | None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return features, shape [B, feature_dim], of token ids, shape [B, S].

        Args:
            input_ids: int64 [B, S].
            attention_mask: 1 = token, 0 = padding, shape [B, S]; None means all are tokens.

        Raises:
            ArgumentError: If a shape does not fit, or S is over the model's limit.
        """
        check_texts(input_ids, attention_mask, self.max_length)
        hidden = (
            super()
            .forward(  # type: ignore[call-arg]
                input_ids=input_ids, attention_mask=attention_mask, position_ids=self._positions(input_ids)
            )
            .last_hidden_state
        )
        if self.pooling == "cls":
            return hidden[:, 0]
        if attention_mask is None:
            return hidden.mean(dim=1)
        seen = attention_mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * seen).sum(dim=1) / seen.sum(dim=1).clamp_min(1)

    def _positions(self, input_ids: Tensor) -> Tensor | None:
        """Positions written out for every text, so that each sample has embeddings of its own."""
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)


class BertEncoder(TextEncoder, BertModel):
    """BERT and MiniLM, without the pooler."""


class RobertaEncoder(TextEncoder, RobertaModel):
    """RoBERTa, without the pooler."""

    def _positions(self, input_ids: Tensor) -> None:
        """The model counts what is not padding."""


class DistilBertEncoder(TextEncoder, DistilBertModel):
    """DistilBERT."""


class T5Answers(T5ForConditionalGeneration):
    """T5 as a judge of answers."""

    max_length = None
    pad_id: int
    start_id: int

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, answers: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return log p(answer | text), shape [B, C], summed over the tokens of each answer.

        Args:
            input_ids: int64 [B, S].
            attention_mask: 1 = token, 0 = padding, shape [B, S]; None means all are tokens.
            answers: int64 [B, C, L], padded at the end with -100. An answer without a token has -inf.

        Raises:
            ArgumentError: If a shape does not fit.
        """
        check_texts(input_ids, attention_mask, None)
        if answers is None or answers.dim() != 3 or len(answers) != len(input_ids):
            found = None if answers is None else list(answers.shape)
            raise ArgumentError(f"answers must have shape [B={len(input_ids)}, C, L], got {found}")
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.score(states, attention_mask, answers)

    def score(self, states: Tensor, attention_mask: Tensor | None, answers: Tensor) -> Tensor:
        """`forward` from the encoder's states [B, S, D]."""
        batch, choices, length = answers.shape
        # The answers of a text stand one after the other and do not see each other. Relative positions within an
        # answer are what they would be alone, and keys and values of the text are computed once for all.
        is_token = answers != _IGNORED
        tokens = answers.masked_fill(~is_token, self.pad_id)
        before = torch.cat([torch.full_like(tokens[..., :1], self.start_id), tokens[..., :-1]], dim=-1)
        own = torch.arange(choices * length, device=answers.device)
        seen = (own[:, None] // length == own // length) & (own[:, None] >= own)
        hidden = self.decoder(
            input_ids=before.flatten(1),
            attention_mask=seen.expand(batch, 1, -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            use_cache=False,
        ).last_hidden_state
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.model_dim**-0.5
        logits = self.lm_head(hidden)  # [B, C L, V]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums over words and tokens follow
        scores = logits.gather(-1, tokens.flatten(1).unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, -1)
        scores = scores.unflatten(1, (choices, length)) * is_token.to(scores.dtype)
        absent = torch.where(is_token.any(-1), 0.0, -torch.inf).to(scores.dtype)
        return scores.sum(-1) + absent


_ENCODERS: dict[str, Any] = {"bert": BertEncoder, "roberta": RobertaEncoder, "distilbert": DistilBertEncoder}
_FAMILIES: dict[str, dict[str, Any]] = {"bert": _ENCODERS, "t5": {"t5": T5Answers}}


def _bert(width: int, depth: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def _t5(width: int, depth: int, heads: int, hidden: int, newer: bool = False) -> dict[str, Any]:
    shape: dict[str, Any] = {"d_model": width, "num_layers": depth, "num_heads": heads, "d_ff": hidden}
    return shape | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if newer else shape


# What random weights need to know when no configuration file is at hand.
_KNOWN_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "sentence-transformers/all-MiniLM-L6-v2": ("bert", _bert(384, 6, 12)),
    "google-bert/bert-base-uncased": ("bert", _bert(768, 12, 12)),
    "google-bert/bert-large-uncased": ("bert", _bert(1024, 24, 16)),
    "google-t5/t5-small": ("t5", _t5(512, 6, 8, 2048)),
    "google-t5/t5-base": ("t5", _t5(768, 12, 12, 3072)),
    "google-t5/t5-large": ("t5", _t5(1024, 24, 16, 4096)),
    "google/t5-v1_1-small": ("t5", _t5(512, 8, 6, 1024, newer=True)),
    "google/t5-v1_1-base": ("t5", _t5(768, 12, 12, 2048, newer=True)),
    "google/t5-v1_1-large": ("t5", _t5(1024, 24, 16, 2816, newer=True)),
}


def load(family: str, name: str, *, pretrained: bool, pooling: str, depth: int | None) -> nn.Module:
    """Build the model of a repository, a folder, or, at random, a model type; see load_language_model."""
    config = _configuration(family, name, pretrained)
    if depth is not None:
        if not 1 <= depth <= config.num_hidden_layers:
            raise ArgumentError(f"depth must be from 1 to {config.num_hidden_layers}, got {depth}")
        config.num_hidden_layers = depth
        if family == "t5":
            config.num_decoder_layers = min(depth, config.num_decoder_layers)
    return build(config, pooling, (family, name) if pretrained else None)


def build(config: Any, pooling: str, source: tuple[str, str] | None = None) -> nn.Module:
    """Build the library's own class, with the weights of a (family, repository) or random ones, and make it ours."""
    check_choice("pooling", pooling, POOLINGS)
    ours = {kind: model for family in _FAMILIES.values() for kind, model in family.items()}.get(config.model_type)
    if ours is None:
        raise ArgumentError(f"config must be one of {', '.join((*_ENCODERS, 't5'))}, got {config.model_type!r}")
    config = copy.deepcopy(config)
    library = next(kind for kind in ours.__mro__ if kind.__module__.startswith("transformers.models."))
    options = {"add_pooling_layer": False} if ours in (BertEncoder, RobertaEncoder) else {}
    if source is None:
        model = _at_random(library, config, options)
    else:
        model = load_weights(library, *source, config, options, _KNOWN_SHAPES)
    # Not before: transformers renames the tensors of older checkpoints for its own classes only.
    model.__class__ = ours
    model.vocab_size, model.pad_id = config.vocab_size, config.pad_token_id
    model.normalize_features = False
    if ours is T5Answers:
        start = getattr(config, "decoder_start_token_id", None)
        model.start_id = model.pad_id if start is None else start
        if source is None and not config.scale_decoder_outputs:  # T5 1.1, which transformers ties all the same
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    else:
        model.pooling, model.feature_dim = pooling, config.hidden_size
        model.max_length = _limit(config)
    return use_fast_linear(model.train())


def _at_random(library: Any, config: Any, options: dict[str, bool]) -> Any:
    """Build the class with random weights. Tied before they are drawn, tied tensors take memory once."""
    with no_init_weights():
        model = library(config, **options)
    model.tie_weights()
    model.initialize_weights()
    return model


def check_texts(input_ids: Tensor, attention_mask: Tensor | None, limit: int | None) -> None:
    """Refuse token ids or a mask of another shape than [B, S], and texts over the model's limit.

    Raises:
        ArgumentError: Naming what does not fit.
    """
    if input_ids.dim() != 2 or input_ids.is_floating_point():
        raise ArgumentError(f"input_ids must be integers [B, S], got {input_ids.dtype} {list(input_ids.shape)}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ArgumentError(
            f"attention_mask must have the shape of input_ids, {list(input_ids.shape)}, "
            f"got {list(attention_mask.shape)}"
        )
    if limit is not None and input_ids.shape[1] > limit:
        raise ArgumentError(
            f"input_ids must have at most {limit} tokens a text, got {input_ids.shape[1]}; truncate them"
        )


def _configuration(family: str, name: str, pretrained: bool) -> Any:
    """The configuration of a repository or folder, or what is known of it."""
    types = _FAMILIES[family]
    if not pretrained and name in types:
        return transformers.CONFIG_MAPPING[name]()
    if not pretrained and name in _KNOWN_SHAPES and _KNOWN_SHAPES[name][0] in types:
        kind, shape = _KNOWN_SHAPES[name]
        return transformers.CONFIG_MAPPING[kind](**shape)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise absent(f"{family}:{name}", error, [*types, *_KNOWN_SHAPES]) from error
    if config.model_type not in types:
        raise ArgumentError(f"{family}:{name} must be one of the types {', '.join(types)}, got {config.model_type!r}")
    return config


def _limit(config: Any) -> int:
    """Most tokens of a text; RoBERTa's table begins after the padding id."""
    return config.max_position_embeddings - (config.pad_token_id + 1 if config.model_type == "roberta" else 0)
