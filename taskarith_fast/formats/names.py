"""Names without their wrappings: `module.`, `model.`, `image_encoder.`, `visual.`; and the text tower."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from taskarith_fast.errors import ArgumentError, CheckpointError

# DataParallel, torch.compile, task_vectors' ImageEncoder and ImageClassifier, Lightning modules.
_WRAPPERS = ("_orig_mod.", "module.", "model.", "image_encoder.", "backbone.")
# Classifiers that sit beside a wrapped encoder and keep their own names.
_HEAD = re.compile(r"^(classification_heads?|classifier|head|fc)\.")
# Text towers: the leftovers in an open_clip model, those of a Hugging Face CLIPModel.
_TEXT = {
    "visual.": re.compile(
        r"^(positional_embedding|text_projection(\.\w+)?|logit_scale|logit_bias|attn_mask"
        r"|token_embedding\..*|ln_final\..*|transformer\..*|text\..*)$"
    ),
    "vision_model.": re.compile(r"^(text_model\..*|text_projection\.weight|logit_scale)$"),
}


@dataclass
class NameReport:
    """What became of a checkpoint's names; nothing changes without a line here."""

    source: str = ""
    """Layout the names were in, where it mattered."""
    target: str = ""
    """Layout they are in now."""
    prefix: str = ""
    """Prefix that was taken off."""
    renamed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Old name -> new names; a fused matrix that was split has three, three that were fused share one."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Old name -> why it is gone."""
    added: dict[str, str] = field(default_factory=dict)
    """New name -> what it was filled with."""
    notes: list[str] = field(default_factory=list)
    """What the reader of the result has to know."""


def normalize_names(state: Mapping[str, Tensor], *, text_tower: str = "keep") -> tuple[dict[str, Tensor], NameReport]:
    """Take the wrappings off the names of a checkpoint.

    A wrapper (`module.`, `_orig_mod.`, `model.`, `image_encoder.`, `backbone.`) goes if all tensors have it,
    a classifier beside them excepted. `visual.` goes if no text tower is left beside it, for both have
    tensors of the same names. Tensors are passed on as they are, tied ones tied.

    Args:
        state: Name -> tensor.
        text_tower: "keep" or "drop" the text tower of a CLIP model, or what is left of it: an ImageEncoder of
            ViT-B/32 has 113,448,705 parameters with the leftovers and 87,849,216 without.

    Returns:
        The state under its new names, in the same order, and the report.

    Raises:
        ArgumentError: If `text_tower` is neither.
        CheckpointError: If two tensors would get one name.
    """
    if text_tower not in ("keep", "drop"):
        raise ArgumentError(f"text_tower must be keep or drop, got {text_tower!r}")
    names = {name: name for name in state}
    report = NameReport(prefix=_strip_wrappers(names))
    text = text_names(names.values())
    if text_tower == "drop":
        report.dropped = {old: "text tower" for old, new in names.items() if new in text}
        names = {old: new for old, new in names.items() if old not in report.dropped}
        text = frozenset()
    if any(new.startswith("visual.") for new in names.values()):
        if not text:
            _strip(names, "visual.")
            report.prefix += "visual."
        else:
            report.notes.append("visual. stays, because the text tower has tensors of the same names")
    _check_distinct(names)
    report.renamed = {old: (new,) for old, new in names.items() if old != new}
    return {new: state[old] for old, new in names.items()}, report


def text_names(names: Iterable[str]) -> frozenset[str]:
    """Those of `names`, wrappers off, that belong to a CLIP model's text tower or are left over from it."""
    names = list(names)
    for tower, pattern in _TEXT.items():
        if any(name.startswith(tower) for name in names):
            return frozenset(name for name in names if pattern.match(name))
    return frozenset()


def _strip_wrappers(names: dict[str, str]) -> str:
    """Take shared wrappers off the new names, in place, and return them joined."""
    stripped = ""
    while True:
        inner = [new for new in names.values() if not _HEAD.match(new)]
        prefix = next((w for w in _WRAPPERS if inner and all(new.startswith(w) for new in inner)), None)
        if prefix is None:
            return stripped
        _strip(names, prefix)
        stripped += prefix


def _strip(names: dict[str, str], prefix: str) -> None:
    for old, new in names.items():
        names[old] = new.removeprefix(prefix)


def _check_distinct(names: dict[str, str]) -> None:
    owner: dict[str, str] = {}
    for old, new in names.items():
        if not new or owner.setdefault(new, old) != old:
            raise CheckpointError(f"{old}: its name without prefix, {new!r}, is empty or also that of {owner.get(new)}")
