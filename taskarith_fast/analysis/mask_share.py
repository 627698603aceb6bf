"""Where masks lie: the share of selected weights by type of layer and depth (TaLoS 2025, figures 4 and 5)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from taskarith_fast.masks import Masks
from taskarith_fast.ops import unpack_bits

_BLOCK = re.compile(r"\b(?:resblocks|blocks|layers?)\.(\d+)\.(.+)$")
_FUSED = re.compile(r"(in_proj_|qkv\.)(weight|bias)$")

OUTSIDE = -1
"""Depth of a tensor that is in no block."""


@dataclass(frozen=True, eq=False)
class MaskShare:
    """Selected weights of every tensor, or part of one; K rows in the order of the masks."""

    kind: np.ndarray
    """Name within the block such as "mlp.c_fc.weight", or the whole name outside of blocks, [K]."""
    depth: np.ndarray
    """Number of the block, int64 [K]; OUTSIDE for none."""
    selected: np.ndarray
    """Entries that are True, int64 [K]."""
    numel: np.ndarray
    """All entries, int64 [K]."""

    @property
    def density(self) -> np.ndarray:
        """selected / numel, [K]; 0 for tensors without entries."""
        return self.selected / np.maximum(self.numel, 1)

    @property
    def share(self) -> np.ndarray:
        """selected over all that is selected, [K]; it sums to 1, or is 0 where nothing is."""
        return self.selected / max(int(self.selected.sum()), 1)

    def table(self, values: np.ndarray) -> tuple[list[str], list[int], np.ndarray]:
        """Values [K] as a table of kinds and depths, [kinds, depths]; NaN where a block has no such tensor."""
        kinds, depths = list(dict.fromkeys(self.kind.tolist())), sorted(set(self.depth.tolist()))
        table = np.full((len(kinds), len(depths)), np.nan)
        for kind, depth, value in zip(self.kind.tolist(), self.depth.tolist(), values, strict=True):
            table[kinds.index(kind), depths.index(depth)] = value
        return kinds, depths, table


def mask_share(masks: Masks, *, split_qkv: bool = True) -> MaskShare:
    """Count the selected weights of each tensor.

    Args:
        masks: True = selected.
        split_qkv: Count query, key and value of a fused projection apart, as its thirds by rows.
    """
    rows: list[tuple[str, int, int, int]] = []
    for name in masks:
        found = _BLOCK.search(name)
        kind, depth = (found[2], int(found[1])) if found else (name, OUTSIDE)
        shape = masks.shape(name)
        if split_qkv and _FUSED.search(kind) and shape[0] % 3 == 0:
            mask = unpack_bits([masks.packed(name)], [shape])[0]
            for letter, part in zip("qkv", mask.chunk(3), strict=True):
                rows.append((f"{kind} ({letter})", depth, int(part.sum()), part.numel()))
        else:
            rows.append((kind, depth, masks.count(name), math.prod(shape)))
    kinds, depths, selected, numel = zip(*rows, strict=True) if rows else ((), (), (), ())
    return MaskShare(np.array(kinds, dtype=str), *(np.array(x, dtype=np.int64) for x in (depths, selected, numel)))
