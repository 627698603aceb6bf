"""From one library's vision transformer to another's: names, q, k, v fused or apart, shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from taskarith_fast.errors import CheckpointError, check_choice
from taskarith_fast.formats.layouts import (
    LAYOUT_NAMES,
    LAYOUTS,
    TEXT_LAYOUTS,
    Layout,
    detect_layout,
    split_word,
)
from taskarith_fast.formats.names import NameReport, normalize_names, text_names
from taskarith_fast.formats.words import Words

# Tensors that the features of an encoder do not depend on.
_EXTRAS = {
    "mask": "the mask token, used in pre-training only",
    "pooler": "the pooler after the class token",
    "head": "a classifier",
    "pair_head": "a classifier on class token and mean patch",
    "proj": "the projection into the space of the text embeddings",
}
_IDLE = ("mask",)  # dropped, and listed, without being asked: no model computes with it after pre-training
_REASONS = {
    "pre": "a norm before the blocks (CLIP has one)",
    "ls1": "LayerScale (DINOv2 has it)",
    "ls2": "LayerScale (DINOv2 has it)",
    "patch": "a bias of the patch embedding",
    "reg": "register tokens",
    "gated_in": "a gated MLP",
    "gated_out": "a gated MLP",
    "pooled_norm": "a norm after pooling",
    "cls": "a class token",
    "qkv": "biases of query, key and value",
    "fc1": "an ungated MLP",
    "fc2": "an ungated MLP",
}


def convert_names(
    state: Mapping[str, Tensor],
    source: str = "auto",
    target: str = "open_clip",
    *,
    text_tower: str = "keep",
    drop_extra: bool = False,
    memory_names: bool = False,
) -> tuple[dict[str, Tensor], NameReport]:
    """Give a vision transformer the names and shapes of another library; no value changes by a bit.

    Wrappers go first, as in `normalize_names`. "open_clip" also stands for this package's own
    VisionTransformer, which has open_clip's names, LayerScale and a bias of the patch embedding. Fused
    query, key and value rows are split, or separate ones fused; projections are transposed where a library
    keeps them as a dense layer. A whole CLIP model takes its text tower along between "open_clip" and
    "hf_clip".

    Args:
        state: Name -> tensor.
        source: Layout of `state`: "auto", "open_clip", "timm", "hf_clip", "hf_vit" or "hf_dinov2".
        target: Layout wanted, one of the same.
        text_tower: "keep" or "drop"; only the CLIP layouts can keep it.
        drop_extra: Leave out what the features do not depend on and the target has no place for: classifier,
            pooler, CLIP's projection. They are refused otherwise. A mask token always goes, and is listed.
        memory_names: For "hf_vit" and "hf_dinov2": the names that transformers 5 gives a model in memory,
            instead of those that `save_pretrained` of every release writes.

    Returns:
        The new state, and the report of all that was renamed, dropped and added. Split tensors are views.

    Raises:
        ArgumentError: If a layout is not known.
        CheckpointError: If the layout cannot be told, a tensor is not of it, or the target cannot hold the
            model.
    """
    check_choice("source", source, ("auto", *LAYOUT_NAMES))
    check_choice("target", target, LAYOUT_NAMES)
    plain, report = normalize_names(state, text_tower=text_tower)
    text = {name: plain[name] for name in text_names(plain)}
    vision = {name: tensor for name, tensor in plain.items() if name not in text}
    reader = _source_layout(vision, source)
    writer = [layout for layout in LAYOUTS if layout.name == target][-1 if memory_names else 0]
    report.source, report.target = reader.name, writer.name
    if text and writer.name not in TEXT_LAYOUTS:
        raise CheckpointError(f"{writer.name} has no text tower, got {len(text)} tensors of one: drop it (text_tower)")

    originals = {new: old for old, (new,) in report.renamed.items()}
    report.renamed = {}
    words = Words(report, originals)
    words.read(vision, reader)
    prefixed = bool(text) if writer.name == "open_clip" else writer.name == "hf_clip"
    _fit(words, reader, writer, drop_extra)
    result = words.write(writer, prefixed or any(w in writer.bare and w != "proj" for w in words.tensors))
    if text:
        text_words = Words(report, originals)
        text_words.read(text, TEXT_LAYOUTS[reader.name])
        result |= text_words.write(TEXT_LAYOUTS[writer.name], prefixed=False)
    report.notes = _notes(words, reader, writer)
    return result, report


def _source_layout(state: Mapping[str, Tensor], source: str) -> Layout:
    layout = detect_layout(state)
    if source != "auto" and (layout is None or layout.name != source):
        seen = layout.name if layout else "none that is known"
        raise CheckpointError(f"source must be the layout of the checkpoint, {seen}; got {source!r}")
    if layout is None:
        example = next(iter(state), "no tensor")
        raise CheckpointError(
            f"the names are of no known vision transformer ({', '.join(LAYOUT_NAMES)}); one is {example}"
        )
    return layout


def _fit(words: Words, reader: Layout, writer: Layout, drop_extra: bool) -> None:
    """Refuse a model that the target cannot hold, leave out extras, add what it cannot be without."""
    _check_blocks(words.tensors)
    stems = {split_word(word)[2] for word in words.tensors}
    if "reg" in stems and reader.name != writer.name:
        raise CheckpointError(f"{writer.name} cannot hold {_REASONS['reg']} as {reader.name} stores them")
    for word in list(words.tensors):
        _, _, stem = split_word(word)
        if _has_place(stem, writer):
            continue
        kind = stem.split(".")[0]
        if kind not in _EXTRAS:
            raise CheckpointError(f"{writer.name} has no place for {_REASONS.get(kind, stem)}: {word}")
        if not drop_extra and kind not in _IDLE:
            raise CheckpointError(f"{writer.name} has no place for {_EXTRAS[kind]}: drop it (drop_extra)")
        words.drop(word, _EXTRAS[kind])
    if writer.name == "timm":
        stems = {stem.replace("gated_in", "fc1").replace("gated_out", "fc2") for stem in stems}
    lacking = sorted(writer.required - stems)
    if lacking:
        kind = lacking[0].split(".")[0]
        raise CheckpointError(f"{writer.name} needs {_REASONS.get(kind, lacking[0])}, the checkpoint has none")
    _add_needed(words, writer)


def _has_place(stem: str, writer: Layout) -> bool:
    if stem.startswith("qkv.") or (writer.name == "timm" and stem.startswith(("proj", "gated_"))):
        return True
    return stem not in writer.only_read and (stem in writer.inner or stem in writer.outer)


def _add_needed(words: Words, writer: Layout) -> None:
    if writer.name == "hf_dinov2" and "mask" not in words.tensors:
        patch = words.tensors["patch.weight"]
        words.put("mask", patch.new_zeros(1, patch.shape[0]), [])
        words.report.added["embeddings.mask_token"] = "zeros; used in pre-training only"
    if writer.name == "timm" and "proj" in words.tensors:
        proj = words.tensors["proj"]
        words.put("head.bias", proj.new_zeros(proj.shape[1]), [])
        words.report.added["head.bias"] = "zeros; timm keeps CLIP's projection as a head"


def _check_blocks(tensors: Mapping[str, Tensor]) -> None:
    """Blocks must be numbered 0, 1, 2, ... and all have the same tensors."""
    blocks: dict[int, set[str]] = {}
    for word in tensors:
        inside, index, stem = split_word(word)
        if inside:
            blocks.setdefault(int(index), set()).add(stem)
    if sorted(blocks) != list(range(len(blocks))):
        missing = next(i for i in range(len(blocks) + 1) if i not in blocks)
        raise CheckpointError(f"block {missing} is missing; the checkpoint has {len(blocks)}")
    everything = set().union(*blocks.values())
    for number, stems in blocks.items():
        if stems != everything:
            raise CheckpointError(f"block {number} lacks {min(everything - stems)}, which other blocks have")


def _notes(words: Words, reader: Layout, writer: Layout) -> list[str]:
    notes = [writer.note] if writer.note and writer.name != reader.name else []
    if writer.name == "open_clip" and ("patch.bias" in words.tensors or "pre.weight" not in words.tensors):
        notes = ["open_clip's names, for this package's VisionTransformer: open_clip itself has no such model"]
    return notes
