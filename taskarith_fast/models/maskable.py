"""Which parameters sparse fine-tuning may select entries of, as TaLoS (ICLR 2025, section 5.1) has it.

Dense layers of attention and MLP, norms and the patch embedding, weights and biases. Class, position and word
embeddings, relative position biases, LayerScale factors and the projection after the last norm are frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.parameters import is_linear_layer

_NORMS = (
    r"\b(ln_1|ln_2|ln_pre|ln_post)\.(weight|bias)$",  # ours, open_clip
    r"\b(norm|norm1|norm2|norm_pre|fc_norm|q_norm|k_norm)\.(weight|bias)$",  # timm; Dinov2Model
    r"\b(layernorm|layernorm_before|layernorm_after)\.(weight|bias)$",  # ViTModel, Dinov2Model
    r"\b(pre_layrnorm|layer_norm1|layer_norm2|post_layernorm)\.(weight|bias)$",  # CLIP
    r"\b(LayerNorm|sa_layer_norm|output_layer_norm)\.(weight|bias)$",  # BERT and RoBERTa; DistilBERT
    r"\b(layer_norm|final_layer_norm)\.weight$",  # T5
)
# ours and open_clip; timm; ViT and Dinov2Model; CLIP
_PATCHES = r"\b(conv1|patch_embed\.proj|patch_embeddings\.projection|patch_embedding)\.(weight|bias)$"


def is_maskable(name: str) -> bool:
    """Tell whether entries of a parameter may be selected, by its name in ours, open_clip, timm or transformers."""
    return is_linear_layer(name, "p4") or any(re.search(pattern, name) for pattern in (*_NORMS, _PATCHES))


def maskable_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of maskable parameters, in the order given.

    Of a whole CLIP checkpoint only the image tower counts: if any name has a part "visual" or "vision_model", the
    others are left out.

    Args:
        names: Parameter names of one model.

    Raises:
        ArgumentError: If none is maskable.
    """
    names = list(names)
    towers = [name for name in names if re.search(r"\b(visual|vision_model)\.", name)]
    chosen = tuple(name for name in towers or names if is_maskable(name))
    if not chosen:
        raise ArgumentError(
            "model must have maskable parameters (dense layers, norms, patch embedding), "
            f"got {len(names)} names such as {', '.join(names[:3]) or 'none'}; name them with maskable="
        )
    return chosen
