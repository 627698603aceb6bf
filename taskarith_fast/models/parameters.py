"""Which parameters are the linear layers, as "Fine-Tuning Linear Layers Only" (arXiv 2407.08979) has it.

The paper trains the query, key, value and output matrices of attention and nothing else. Its third and fourth
sets say "all linear layers", read here as those of attention and MLP: the published lines select nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from taskarith_fast.errors import ArgumentError

LINEAR_LAYER_SETS = {
    "p1": "attention weights (query, key, value, output): the paper's method",
    "p2": "p1 and the attention biases",
    "p3": "p1 and the MLP weights",
    "p4": "p2, the MLP weights and the MLP biases",
}

# Names that end in {kind}, weight or bias: open_clip and ours; timm; transformers 5 (ViT, then CLIP);
# transformers 4; BERT and RoBERTa; DistilBERT; T5.
_ATTENTION = (
    r"\battn\.(in_proj_{kind}|out_proj\.{kind})$",
    r"\battn\.(qkv|proj)\.{kind}$",
    r"\battention\.(q_proj|k_proj|v_proj|o_proj)\.{kind}$",
    r"\bself_attn\.(q_proj|k_proj|v_proj|out_proj)\.{kind}$",
    r"\battention\.(attention\.(query|key|value)|output\.dense)\.{kind}$",
    r"\battention\.self\.(query|key|value)\.{kind}$",
    r"\battention\.(q_lin|k_lin|v_lin|out_lin)\.{kind}$",
    r"\b(SelfAttention|EncDecAttention)\.(q|k|v|o)\.{kind}$",
)
_MLP = (
    r"\bmlp\.(c_fc|c_proj|fc1|fc2)\.{kind}$",
    r"\blayer\.\d+\.(intermediate|output)\.dense\.{kind}$",
    r"\bffn\.(lin1|lin2)\.{kind}$",
    r"\bDenseReluDense\.(wi|wi_0|wi_1|wo)\.{kind}$",
)


def is_linear_layer(name: str, layers: str = "p1") -> bool:
    """Tell whether a parameter belongs to one of the sets, by its name alone.

    Args:
        name: Name in the state dict of an encoder of ours, open_clip, timm or transformers.
        layers: "p1", "p2", "p3" or "p4", see LINEAR_LAYER_SETS.

    Raises:
        ArgumentError: If there is no such set.
    """
    if layers not in LINEAR_LAYER_SETS:
        raise ArgumentError(f"layers must be one of {', '.join(LINEAR_LAYER_SETS)}, got {layers!r}")
    kinds = ("weight", "bias") if layers in ("p2", "p4") else ("weight",)
    patterns = _ATTENTION if layers in ("p1", "p2") else _ATTENTION + _MLP
    return any(re.search(pattern.replace("{kind}", kind), name) for pattern in patterns for kind in kinds)


def linear_layer_names(names: Iterable[str], layers: str = "p1") -> tuple[str, ...]:
    """Return the names that belong to one of the sets, in the order given.

    Of a whole CLIP checkpoint only the image tower counts: if any name has a part "visual" or "vision_model",
    the others are left out.

    Args:
        names: Parameter names of one model.
        layers: As is_linear_layer's.

    Raises:
        ArgumentError: If there is no such set, or no name belongs to it.
    """
    names = list(names)
    towers = [name for name in names if re.search(r"\b(visual|vision_model)\.", name)]
    chosen = tuple(name for name in towers or names if is_linear_layer(name, layers))
    if not chosen:
        raise ArgumentError(
            f"names must hold a parameter of the set {layers} ({LINEAR_LAYER_SETS[layers]}), "
            f"got {len(names)} names such as {', '.join(names[:3]) or 'none'}"
        )
    return chosen
