"""How each library names the tensors of a vision transformer: one table a layout, over plain words.

The words: cls, pos, patch, pre (norm before the blocks), post (norm after them), proj (projection into
CLIP's space), and in block i: norm1, qkv or q, k, v, out, ls1, norm2, fc1, fc2, ls2. A word stands for its
weight and its bias, but for those that are one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

_SINGLE = frozenset(("cls", "pos", "reg", "mask", "proj", "ls1", "ls2", "token", "scale", "shift", "position_ids"))


def _tensors(words: Mapping[str, str]) -> dict[str, str]:
    """Spell weight and bias out: norm1: ln_1 gives norm1.weight: ln_1.weight, norm1.bias: ln_1.bias."""
    spelled = {}
    for word, name in words.items():
        if word in _SINGLE or "." in word:
            spelled[word] = name
        else:
            spelled.update({f"{word}.{part}": f"{name}.{part}" for part in ("weight", "bias")})
    return spelled


@dataclass(frozen=True)
class Layout:
    """One library's names.

    Attributes:
        name: What users call it.
        outer: Word -> name outside the blocks.
        block: Prefix of a block, with {i}.
        inner: Word -> name inside a block.
        prefix: What stands before all names but those in `bare`, when a whole model is saved.
        bare: Words without the prefix.
        batched: Class token and positions have leading dimensions of 1.
        proj_transposed: The projection is stored as a dense layer's weight, [D, d].
        required: Words without which the library's model cannot be built.
        only_read: Words found in files of this layout that its library's model has no place for.
        note: What a user of the converted file has to set.
    """

    name: str
    outer: Mapping[str, str]
    block: str
    inner: Mapping[str, str]
    prefix: str = ""
    bare: frozenset[str] = frozenset()
    batched: bool = False
    proj_transposed: bool = False
    required: frozenset[str] = frozenset()
    only_read: frozenset[str] = frozenset()
    note: str = ""

    @property
    def fused(self) -> bool:
        """Query, key and value are one matrix."""
        return "qkv.weight" in self.inner

    @cached_property
    def _words(self) -> tuple[dict[str, str], dict[str, str], re.Pattern[str]]:
        pattern = re.compile("^" + re.escape(self.block).replace(r"\{i\}", r"(\d{1,4})") + r"(.+)$")
        return {n: w for w, n in self.outer.items()}, {n: w for w, n in self.inner.items()}, pattern

    def word(self, name: str) -> str | None:
        """The word for a name without prefix, such as blocks.3.out.weight; None if there is none."""
        outer, inner, pattern = self._words
        if name in outer:
            return outer[name]
        match = pattern.match(name)
        if match is None or match[2] not in inner or match[1] != str(int(match[1])):
            return None
        return f"blocks.{match[1]}.{inner[match[2]]}"

    def spell(self, word: str, *, prefixed: bool) -> str | None:
        """The name for a word; None if the layout has no place for it."""
        block, index, stem = split_word(word)
        name = self.inner.get(stem) if block else self.outer.get(stem)
        if name is None:
            return None
        if block:
            name = self.block.replace("{i}", index) + name
        return name if not prefixed or word in self.bare else self.prefix + name


def split_word(word: str) -> tuple[bool, str, str]:
    """Whether a word is inside a block, the block's index, and the word without it."""
    parts = word.split(".", 2)
    return (True, parts[1], parts[2]) if parts[0] == "blocks" and len(parts) == 3 else (False, "", word)


_CORE = frozenset(("norm1.weight", "norm1.bias", "qkv.weight", "out.weight", "out.bias", "norm2.weight", "norm2.bias"))
_MLP = frozenset(("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"))
_ENDS = frozenset(("cls", "pos", "patch.weight", "post.weight", "post.bias"))
_CLIP_BLOCK = {
    "norm1": "ln_1",
    "qkv.weight": "attn.in_proj_weight",
    "qkv.bias": "attn.in_proj_bias",
    "out": "attn.out_proj",
    "ls1": "ls_1.gamma",
    "norm2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "ls2": "ls_2.gamma",
}
_HF_CLIP_BLOCK = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_SAVED_ATTENTION = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "out": "attention.output.dense",
}
_MEMORY_ATTENTION = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "out": "attention.o_proj",
}
_HF_OUTER = {
    "cls": "embeddings.cls_token",
    "pos": "embeddings.position_embeddings",
    "patch": "embeddings.patch_embeddings.projection",
    "post": "layernorm",
}

OPEN_CLIP = Layout(
    "open_clip",
    _tensors(
        {
            "cls": "class_embedding",
            "pos": "positional_embedding",
            "patch": "conv1",
            "pre": "ln_pre",
            "post": "ln_post",
            "proj": "proj",
        }
    ),
    "transformer.resblocks.{i}.",
    _tensors(_CLIP_BLOCK),
    prefix="visual.",
    required=_ENDS | _CORE | _MLP | {"qkv.bias"},
    note="open_clip: the activation must be the one trained with (OpenAI's weights: -quickgelu)",
)
TIMM = Layout(
    "timm",
    _tensors(
        {
            "cls": "cls_token",
            "pos": "pos_embed",
            "reg": "reg_token",
            "mask": "mask_token",
            "patch": "patch_embed.proj",
            "pre": "norm_pre",
            "post": "norm",
            "pooled_norm": "fc_norm",
            "head": "head",
        }
    ),
    "blocks.{i}.",
    _tensors(
        {
            "norm1": "norm1",
            "qkv": "attn.qkv",
            "out": "attn.proj",
            "ls1": "ls1.gamma",
            "norm2": "norm2",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
            "ls2": "ls2.gamma",
        }
    ),
    batched=True,
    proj_transposed=True,
    required=_CORE | _MLP | {"pos", "patch.weight"},
    only_read=frozenset(("mask",)),
)
HF_CLIP = Layout(
    "hf_clip",
    _tensors(
        {
            "cls": "embeddings.class_embedding",
            "pos": "embeddings.position_embedding.weight",
            "position_ids": "embeddings.position_ids",
            "patch.weight": "embeddings.patch_embedding.weight",
            "pre": "pre_layrnorm",
            "post": "post_layernorm",
            "proj": "visual_projection.weight",
        }
    ),
    "encoder.layers.{i}.",
    _tensors(_HF_CLIP_BLOCK),
    prefix="vision_model.",
    bare=frozenset(("proj",)),
    proj_transposed=True,
    required=_ENDS | _CORE | _MLP | {"qkv.bias", "pre.weight", "pre.bias"},
    note="CLIPVisionConfig: hidden_act is quick_gelu for OpenAI's weights and gelu for most others",
)
HF_VIT = Layout(
    "hf_vit",
    _tensors({**_HF_OUTER, "mask": "embeddings.mask_token", "pooler": "pooler.dense", "head": "classifier"}),
    "encoder.layer.{i}.",
    _tensors(
        {
            **_SAVED_ATTENTION,
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "fc1": "intermediate.dense",
            "fc2": "output.dense",
        }
    ),
    prefix="vit.",
    bare=frozenset(("head.weight", "head.bias")),
    batched=True,
    required=_ENDS | _CORE | _MLP | {"patch.bias"},
    only_read=frozenset(("mask",)),
    note="ViTConfig: layer_norm_eps is 1e-12 by default; timm's and Google's vision transformers have 1e-6",
)
HF_VIT_MEMORY = Layout(
    "hf_vit",
    HF_VIT.outer,
    "layers.{i}.",
    _tensors(
        {
            **_MEMORY_ATTENTION,
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
        }
    ),
    prefix="vit.",
    bare=HF_VIT.bare,
    batched=True,
    required=HF_VIT.required,
    only_read=HF_VIT.only_read,
    note=HF_VIT.note,
)
_DINOV2_BLOCK = {
    "norm1": "norm1",
    "ls1": "layer_scale1.lambda1",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "ls2": "layer_scale2.lambda1",
}
HF_DINOV2 = Layout(
    "hf_dinov2",
    _tensors(
        {
            **_HF_OUTER,
            "mask": "embeddings.mask_token",
            "reg": "embeddings.register_tokens",
            "pair_head": "classifier",
        }
    ),
    "encoder.layer.{i}.",
    _tensors({**_SAVED_ATTENTION, **_DINOV2_BLOCK, "gated_in": "mlp.weights_in", "gated_out": "mlp.weights_out"}),
    prefix="dinov2.",
    bare=frozenset(("pair_head.weight", "pair_head.bias")),
    batched=True,
    required=_ENDS | _CORE | {"patch.bias", "ls1", "ls2"},
    note="Dinov2Config: image_size is the side that the positions were trained for, 518 for Meta's weights",
)
HF_DINOV2_MEMORY = Layout(
    "hf_dinov2",
    HF_DINOV2.outer,
    "encoder.layer.{i}.",
    _tensors({**_MEMORY_ATTENTION, **_DINOV2_BLOCK}),
    prefix="dinov2.",
    bare=HF_DINOV2.bare,
    batched=True,
    required=HF_DINOV2.required,
    note=HF_DINOV2.note,
)
LAYOUTS = (OPEN_CLIP, TIMM, HF_CLIP, HF_VIT, HF_VIT_MEMORY, HF_DINOV2, HF_DINOV2_MEMORY)
LAYOUT_NAMES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))

TEXT_LAYOUTS = {
    "open_clip": Layout(
        "open_clip",
        _tensors(
            {
                "token": "token_embedding.weight",
                "pos": "positional_embedding",
                "post": "ln_final",
                "proj": "text_projection",
                "scale": "logit_scale",
                "shift": "logit_bias",
            }
        ),
        "transformer.resblocks.{i}.",
        _tensors(_CLIP_BLOCK),
    ),
    "hf_clip": Layout(
        "hf_clip",
        _tensors(
            {
                "token": "text_model.embeddings.token_embedding.weight",
                "pos": "text_model.embeddings.position_embedding.weight",
                "position_ids": "text_model.embeddings.position_ids",
                "post": "text_model.final_layer_norm",
                "proj": "text_projection.weight",
                "scale": "logit_scale",
            }
        ),
        "text_model.encoder.layers.{i}.",
        _tensors(_HF_CLIP_BLOCK),
        proj_transposed=True,
    ),
}


def without_prefix(name: str) -> str:
    """A name without the prefix a whole model puts before its vision transformer."""
    for layout in LAYOUTS:
        if layout.prefix and name.startswith(layout.prefix):
            return name.removeprefix(layout.prefix)
    return name


def detect_layout(names: Iterable[str]) -> Layout | None:
    """The layout that knows most of the names, if it knows more than half of them and a block; else None.

    Args:
        names: Names of a vision transformer, wrappers and text tower off.
    """
    plain = [without_prefix(name) for name in names]
    words = {id(layout): [w for w in map(layout.word, plain) if w] for layout in LAYOUTS}
    best = max(LAYOUTS, key=lambda layout: len(words[id(layout)]))
    known = words[id(best)]
    if 2 * len(known) <= len(plain) or not any(split_word(word)[0] for word in known):
        return None
    return best
