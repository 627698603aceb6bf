"""Masks: which weights are trained or kept, one bit each in memory and on disk, boolean where they are looked up."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from taskarith_fast.checkpoint import LazyState, load_state_dict, save_state_dict, with_kind
from taskarith_fast.errors import ArgumentError, CheckpointError, TaskarithError
from taskarith_fast.ops.pack_bits import check_bits, pack_bits
from taskarith_fast.ops.unpack_bits import unpack_bits

_KIND, _SCHEMA = "masks", "1"
_RESERVED = ("taskarith", "schema", "shapes")


class Masks(Mapping[str, Tensor]):
    """Name -> mask (True = kept or trained), held as bits in the order of ``ops.pack_bits``.

    Args:
        bits: Name -> packed mask, uint8 [ceil(n / 8)]; the bits after entry n are zero.
        shapes: Name -> shape of the mask, n entries.

    Attributes:
        metadata: Strings that a loaded file holds beside the masks; empty otherwise.

    Raises:
        ArgumentError: If names differ or a packed mask does not have the size of its shape.
    """

    def __init__(self, bits: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
        if bits.keys() != shapes.keys():
            name = sorted(bits.keys() ^ shapes.keys())[0]
            raise ArgumentError(f"{name} must be in both bits and shapes, got it in one only")
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._bits = {name: bits[name] for name in self._shapes}
        for name, packed in self._bits.items():
            try:
                check_bits([packed], [math.prod(self._shapes[name])])
            except ArgumentError as error:
                raise ArgumentError(f"{name}: {error}") from None
        self.metadata: dict[str, str] = {}

    @classmethod
    def pack(cls, masks: Mapping[str, Tensor]) -> Masks:
        """Pack boolean tensors of any shapes.

        Raises:
            ArgumentError: If one is not bool.
        """
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise ArgumentError(f"{name}: a mask must be bool, got {mask.dtype}")
        bits = pack_bits(list(masks.values()))
        return cls(dict(zip(masks, bits, strict=True)), {name: mask.shape for name, mask in masks.items()})

    @classmethod
    def full(cls, shapes: Mapping[str, Tensor | Sequence[int]], value: bool) -> Masks:
        """Masks that are `value` everywhere, for shapes or for tensors (then on their devices)."""
        bits, sizes = {}, {}
        for name, shape in shapes.items():
            device = shape.device if isinstance(shape, Tensor) else None
            sizes[name] = tuple(shape.shape if isinstance(shape, Tensor) else shape)
            numel = math.prod(sizes[name])
            ones = torch.full(((numel + 7) // 8,), 255 if value else 0, dtype=torch.uint8, device=device)
            bits[name] = _without_padding(ones, numel)
        return cls(bits, sizes)

    @classmethod
    def join(cls, parts: Iterable[Masks]) -> Masks:
        """One object with the masks of all `parts`; of equal names the last."""
        bits, shapes = {}, {}
        for part in parts:
            bits.update(part._bits)
            shapes.update(part._shapes)
        return cls(bits, shapes)

    def packed(self, name: str) -> Tensor:
        """The bits of one mask, uint8 [ceil(n / 8)]."""
        return self._bits[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one mask."""
        return self._shapes[name]

    @property
    def numel(self) -> int:
        """Entries of all masks."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def count(self, name: str | None = None) -> int:
        """How many entries are True: of one mask, or of all."""
        if name is not None:
            return _ones(self._bits[name])
        return sum(_ones(bits) for bits in self._bits.values())

    @property
    def density(self) -> float:
        """The fraction of all entries that is True; 0 where there is no entry."""
        return self.count() / max(self.numel, 1)

    def digest(self, name: str) -> str:
        """SHA-256 of one mask's shape and bits: equal masks, and only they, have equal ones."""
        found = hashlib.sha256(json.dumps(self._shapes[name]).encode())
        found.update(self._bits[name].cpu().numpy().data)
        return found.hexdigest()

    def iou(self, other: Masks) -> float:
        """Entries in both over entries in either (Jaccard index), over all masks; 1 where neither has any."""
        either = (self | other).count()
        return (self & other).count() / either if either else 1.0

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return self._like({name: bits.to(device) for name, bits in self._bits.items()})

    def save(
        self, path: str | os.PathLike[str], overwrite: bool = False, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write the bits to one safetensors file, atomically.

        Args:
            path: Destination, ends in ``.safetensors``.
            overwrite: Replace an existing file.
            metadata: Strings to keep beside the masks; ``Masks.load(path).metadata`` gives them back.

        Raises:
            ArgumentError: If `metadata` uses a name that the format needs.
            CheckpointError: If the file exists and `overwrite` is off, or has another suffix.
        """
        kind = {"taskarith": _KIND, "schema": _SCHEMA, "shapes": json.dumps(self._shapes)}
        state = {name: bits.clone() for name, bits in self._bits.items()}  # two equal masks are not tied weights
        save_state_dict(state, path, metadata=with_kind(kind, metadata), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: If the file is absent, damaged, of another kind or of an unknown schema.
        """
        state = load_state_dict(path)
        if not isinstance(state, LazyState) or state.metadata.get("taskarith") != _KIND:
            raise CheckpointError(f"{path}: expected masks written by Masks.save, got another checkpoint")
        if state.metadata.get("schema") != _SCHEMA:
            raise CheckpointError(f"{path}: masks must have schema {_SCHEMA}, got {state.metadata.get('schema')}")
        try:
            masks = cls(dict(state), read_shapes(state.metadata.get("shapes", "")))
        except TaskarithError as error:
            raise CheckpointError(f"{path}: {error}") from None
        for name, bits in masks._bits.items():
            if not torch.equal(bits, _without_padding(bits.clone(), math.prod(masks._shapes[name]))):
                raise CheckpointError(f"{path}: {name} has bits set after its last entry; the file is damaged")
        masks.metadata = {k: v for k, v in state.metadata.items() if k not in _RESERVED}
        return masks

    def __getitem__(self, name: str) -> Tensor:
        return unpack_bits([self._bits[name]], [self._shapes[name]])[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.count()} of {self.numel} entries)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self._shapes == other._shapes and all(torch.equal(b, other._bits[n]) for n, b in self._bits.items())

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Masks) -> Masks:
        return self._combine(other, torch.bitwise_and)

    def __or__(self, other: Masks) -> Masks:
        return self._combine(other, torch.bitwise_or)

    def __invert__(self) -> Masks:
        return self._like({n: _without_padding(~bits, math.prod(self._shapes[n])) for n, bits in self._bits.items()})

    def _like(self, bits: Mapping[str, Tensor]) -> Masks:
        return Masks(bits, self._shapes)

    def _combine(self, other: Masks, combine: Callable[[Tensor, Tensor], Tensor]) -> Masks:
        if not isinstance(other, Masks):
            return NotImplemented
        for name in sorted(self._shapes.keys() | other._shapes.keys()):
            ours, theirs = self._shapes.get(name), other._shapes.get(name)
            if ours != theirs:
                raise ArgumentError(f"{name}: both masks must have one shape, got {_said(ours)} and {_said(theirs)}")
        return self._like({name: combine(bits, other._bits[name]) for name, bits in self._bits.items()})


def _said(shape: tuple[int, ...] | None) -> str:
    return "no such mask" if shape is None else str(list(shape))


def _ones(bits: Tensor) -> int:
    """How many bits of a uint8 tensor are set."""
    return sum(value.bit_count() * n for value, n in enumerate(torch.bincount(bits, minlength=256).tolist()))


def _without_padding(bits: Tensor, numel: int) -> Tensor:
    """`bits`, changed in place: zero after entry `numel`."""
    if numel % 8:
        bits[-1] &= (1 << numel % 8) - 1
    return bits


def read_shapes(text: str) -> dict[str, list[int]]:
    """Name -> shape, from the metadata of a file; CheckpointError if they are damaged."""
    try:
        shapes = json.loads(text)
        well_formed = all(isinstance(n, int) and n >= 0 for shape in shapes.values() for n in shape)
    except (ValueError, AttributeError, TypeError, RecursionError):
        well_formed = False
    if not well_formed:
        raise CheckpointError("the metadata must hold the masks' shapes; the file is damaged")
    return shapes
