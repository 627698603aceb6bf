"""Language models of every kind, small enough for a test, and batches of texts for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taskarith_fast.models import language_model

VOCABULARY = 60
_BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 20,
}  # fmt: skip
_DISTILBERT = {"vocab_size": VOCABULARY, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40}
_T5 = {"vocab_size": VOCABULARY, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 3}
_CONFIGS = {
    "bert": ("BertConfig", _BERT),
    "roberta": ("RobertaConfig", _BERT),
    "distilbert": ("DistilBertConfig", _DISTILBERT | {"max_position_embeddings": 20}),
    "t5": ("T5Config", _T5),
    "t5 gated": ("T5Config", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5 gated, tied": ("T5Config", _T5 | {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 1}),
}
ENCODERS = ("bert", "roberta", "distilbert")
SEQ2SEQ = ("t5", "t5 gated", "t5 gated, tied")
NAMES = (*ENCODERS, *SEQ2SEQ)


def tiny_language_model(name: str, dtype: torch.dtype = torch.float32, **options: str) -> nn.Module:
    """A random model of one of NAMES, in evaluation mode, biases and gains not at their simple start."""
    import transformers

    kind, shape = _CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = language_model(getattr(transformers, kind)(**shape), **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def texts(name: str, count: int = 3, length: int = 7, choices: int = 4, seed: int = 1) -> dict[str, Tensor]:
    """A batch of random texts, padded unevenly, with answers of 1 to 3 tokens for a sequence-to-sequence model."""
    g = torch.Generator().manual_seed(seed)

    def padded(shape: tuple[int, ...], least: int, padding: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(3, VOCABULARY, shape, generator=g)
        lengths = torch.randint(least, shape[-1] + 1, shape[:-1], generator=g)
        is_token = torch.arange(shape[-1]) < lengths.unsqueeze(-1)
        return tokens.masked_fill(~is_token, padding), is_token

    ids, seen = padded((count, length), 2, 1 if name == "roberta" else 0)
    batch = {"input_ids": ids, "attention_mask": seen.long()}
    return batch if name in ENCODERS else batch | {"answers": padded((count, choices, 3), 1, -100)[0]}
