"""Encoders of images and texts, their heads, and the names of their parameters."""

from taskarith_fast.models.backbone import fetch_backbone, load_backbone
from taskarith_fast.models.compact import compact_gradients
from taskarith_fast.models.encoders import load_clip, load_encoder
from taskarith_fast.models.heads import Head, random_head, zero_shot_head
from taskarith_fast.models.language import language_model, load_language_model
from taskarith_fast.models.minilm import fetch_minilm, load_minilm
from taskarith_fast.models.parameters import LINEAR_LAYER_SETS, is_linear_layer, linear_layer_names
from taskarith_fast.models.tokens import Tokenizer, give_tokenizer, library_tokenizer, parse_tokenizer
from taskarith_fast.models.vit import VisionTransformer, VitConfig

__all__ = [
    "LINEAR_LAYER_SETS",
    "Head",
    "Tokenizer",
    "VisionTransformer",
    "VitConfig",
    "compact_gradients",
    "fetch_backbone",
    "fetch_minilm",
    "give_tokenizer",
    "is_linear_layer",
    "language_model",
    "library_tokenizer",
    "linear_layer_names",
    "load_backbone",
    "load_clip",
    "load_encoder",
    "load_language_model",
    "load_minilm",
    "parse_tokenizer",
    "random_head",
    "zero_shot_head",
]
