"""A model's tensors by plain words, read from one layout and written in another."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.layouts import Layout, split_word, without_prefix
from taskarith_fast.formats.names import NameReport

_QKV = ("q", "k", "v")
_DIMENSIONS = {
    **dict.fromkeys(("cls", "ls1", "ls2", "pre.weight", "post.weight"), 1),
    **dict.fromkeys(("pos", "reg", "mask", "proj", "token"), 2),
    **dict.fromkeys(
        [f"{w}.weight" for w in ("qkv", "out", "fc1", "fc2", "gated_in", "gated_out", "head", "pooler")], 2
    ),
    "patch.weight": 4,
}


class Words:
    """The tensors of a model by plain words, with the names they came under."""

    def __init__(self, report: NameReport, originals: Mapping[str, str]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.report = report
        self._originals = originals
        self._names: dict[str, list[str]] = {}

    def put(self, word: str, tensor: Tensor, names: list[str]) -> None:
        if word in self.tensors:
            raise CheckpointError(f"{names[0]}: a second tensor for {word}")
        self.tensors[word], self._names[word] = tensor, names

    def drop(self, word: str, reason: str) -> None:
        del self.tensors[word]
        for name in self._names[word]:
            self.report.dropped[self._originals.get(name, name)] = reason

    def rename(self, word: str, new: str) -> None:
        self.put(new, self.tensors.pop(word), self._names.pop(word))

    def read(self, state: Mapping[str, Tensor], layout: Layout) -> None:
        separate: dict[str, dict[str, tuple[str, Tensor]]] = {}
        for name, tensor in state.items():
            word = layout.word(without_prefix(name))
            if word is None:
                raise CheckpointError(f"{name} is not a tensor of {article(layout.name)} model")
            block, index, stem = split_word(word)
            if block and stem.split(".")[0] in _QKV:
                letter, part = stem.split(".")
                parts = separate.setdefault(f"blocks.{index}.qkv.{part}", {})
                if letter in parts:
                    raise CheckpointError(f"{name}: a second tensor for {word}")
                parts[letter] = (name, _checked(name, f"qkv.{part}", tensor))
                if len(parts) == 1:  # keeps the place in the order
                    self.put(f"blocks.{index}.qkv.{part}", tensor, [name])
            else:
                self.put(word, _checked(name, stem, _plain_shape(word, tensor, layout)), [name])
        for word, parts in separate.items():
            if len(parts) < 3:
                raise CheckpointError(f"{next(iter(parts.values()))[0]}: its two fellows of q, k, v are missing")
            self._fuse(word, [parts[letter] for letter in _QKV])
        self._settle(layout)

    def _fuse(self, word: str, parts: list[tuple[str, Tensor]]) -> None:
        tensors = [tensor for _, tensor in parts]
        if any(t.shape != tensors[0].shape or t.dtype != tensors[0].dtype for t in tensors):
            raise CheckpointError(f"{parts[0][0]}: q, k and v must have one shape and dtype to be fused")
        self.tensors[word], self._names[word] = torch.cat(tensors), [name for name, _ in parts]

    def _settle(self, layout: Layout) -> None:
        """Tell apart what one library calls by one name."""
        first, second = self.tensors.get("blocks.0.fc1.weight"), self.tensors.get("blocks.0.fc2.weight")
        if first is not None and second is not None and first.shape[0] == 2 * second.shape[1]:
            for word in list(self.tensors):
                if re.search(r"\.fc[12]\.", word):
                    self.rename(word, word.replace(".fc1.", ".gated_in.").replace(".fc2.", ".gated_out."))
        if layout.name == "timm":
            self._settle_head()
        if "position_ids" in self.tensors:
            self.drop("position_ids", "the numbers 0, 1, 2, ...: made anew by the model")

    def _settle_head(self) -> None:
        """timm keeps CLIP's projection as a head whose bias is zero."""
        bias = self.tensors.get("head.bias")
        if not {"pre.weight", "head.weight"} <= self.tensors.keys() or (bias is not None and bool(bias.any())):
            return
        self.rename("head.weight", "proj")
        self.tensors["proj"] = self.tensors["proj"].t()
        if bias is not None:
            self.drop("head.bias", "zero bias of the projection")

    def write(self, layout: Layout, prefixed: bool) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for word, tensor in self.tensors.items():
            if ".qkv." in word and not layout.fused:
                words = [word.replace(".qkv.", f".{letter}.") for letter in _QKV]
                if tensor.shape[0] % 3:
                    raise CheckpointError(f"{word} must have 3 d rows to be split, got shape {list(tensor.shape)}")
                pieces = list(tensor.chunk(3))
            else:
                words, pieces = [word], [_layout_shape(word, tensor, layout)]
            names = [_spelled(layout, w, prefixed) for w in words]
            result.update(zip(names, pieces, strict=True))
            for old in self._names.get(word, ()):
                if tuple(names) != (self._originals.get(old, old),):
                    self.report.renamed[self._originals.get(old, old)] = tuple(names)
        return result


def _spelled(layout: Layout, word: str, prefixed: bool) -> str:
    if layout.name == "timm":
        word = word.replace("gated_in", "fc1").replace("gated_out", "fc2").replace("proj", "head.weight")
    name = layout.spell(word, prefixed=prefixed)
    if name is None:
        raise CheckpointError(f"{layout.name} has no place for {word}")
    return name


def _plain_shape(word: str, tensor: Tensor, layout: Layout) -> Tensor:
    if layout.batched and word in ("cls", "pos", "reg") and tensor.dim() == 3 and len(tensor) == 1:
        return tensor.reshape(-1) if word == "cls" else tensor[0]
    if word == "proj" and layout.proj_transposed and tensor.dim() == 2:
        return tensor.t()
    return tensor.reshape(1, -1) if word == "mask" else tensor


def _checked(name: str, stem: str, tensor: Tensor) -> Tensor:
    """Refuse a tensor that cannot be what its name says: the rest of the conversion relies on its dimensions."""
    dimensions = _DIMENSIONS.get(stem, 1 if stem.endswith("bias") or "norm" in stem else None)
    if dimensions is not None and tensor.dim() != dimensions:
        raise CheckpointError(f"{name} must have {dimensions} dimensions, got shape {list(tensor.shape)}")
    return tensor


def _layout_shape(word: str, tensor: Tensor, layout: Layout) -> Tensor:
    if layout.batched and word in ("cls", "pos", "reg"):
        return tensor.reshape(1, 1, -1) if word == "cls" else tensor[None]
    if word == "proj" and layout.proj_transposed:
        return tensor.t().contiguous()
    return tensor.contiguous() if word == "proj" else tensor


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeio" else f"a {name}"
