"""Which entries of a tensor an operator works on, in the form that the optimizers' kernels read.

A tensor is cut into blocks of 65,536 entries, so that a position in a block takes 16 bits. ``items`` holds, block
by block and ascending, either positions or, where selected entries mostly follow each other, runs of (first
position, selected entries of the block before it) that end with their block. ``offsets`` counts the selected entries
and the items before each block. Both are empty where every entry is selected. So the j-th selected entry is found by
bisection. At most two bytes a selected entry and 16 a block.

Values that exist for selected entries only are *compact*: shape [count], in ascending order of the entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError

BLOCK = 65536
_RUN = 32  # entries: the mean length from which on runs are faster than positions


@dataclass(frozen=True)
class Selection:
    """The selected entries of one tensor.

    items: Positions, int16 [count] (to be read as unsigned), or runs, int16 [R, 2]; empty: every entry.
    offsets: Selected entries and items before each block, int64 [blocks + 1, 2]; empty: every entry.
    numel: Entries of the tensor.
    count: Selected entries.
    """

    items: Tensor
    offsets: Tensor
    numel: int
    count: int

    @classmethod
    def of(cls, mask: Tensor) -> Selection:
        """The True entries of a bool mask of any shape, in the fastest form for their number and order.

        Raises:
            ArgumentError: If `mask` is not bool.
        """
        if mask.dtype != torch.bool:
            raise ArgumentError(f"mask must be bool, got {mask.dtype}")
        numel, index = mask.numel(), mask.reshape(-1).nonzero()[:, 0]
        if numel and len(index) == numel:
            return cls.every(mask)
        first = _run_starts(index)
        edges = torch.arange(0, numel + BLOCK, BLOCK, device=mask.device)[: -(-numel // BLOCK) + 1]
        entries = torch.searchsorted(index, edges)
        if len(index) >= _RUN * len(first):
            begins = index[first]
            before = first - entries[begins // BLOCK]
            items = torch.stack([begins % BLOCK, before], 1).to(torch.int16)
        else:
            begins, items = index, (index % BLOCK).to(torch.int16)
        return cls(items, torch.stack([entries, torch.searchsorted(begins, edges)], 1), numel, len(index))

    @classmethod
    def every(cls, tensor: Tensor) -> Selection:
        """All entries of a tensor like `tensor`."""
        none = torch.empty(0, dtype=torch.int16, device=tensor.device)
        return cls(none, none.long(), tensor.numel(), tensor.numel())

    def index(self) -> Tensor:
        """The selected entries of the flattened tensor, int64 [count], ascending."""
        return flat_index(self.items, self.offsets, self.numel)

    @property
    def nbytes(self) -> int:
        """Bytes of this form."""
        return 2 * self.items.numel() + 8 * self.offsets.numel()


def flat_index(items: Tensor, offsets: Tensor, numel: int) -> Tensor:
    """What ``Selection.index`` gives, from its parts."""
    if not offsets.numel():
        return torch.arange(numel, device=items.device)
    positions = items.long() & 0xFFFF
    blocks = torch.arange(len(offsets) - 1, device=items.device) * BLOCK
    starts = torch.repeat_interleave(blocks, torch.diff(offsets[:, 1]))
    if items.dim() == 1:
        return starts + positions
    before = torch.repeat_interleave(offsets[:-1, 0], torch.diff(offsets[:, 1])) + positions[:, 1]
    lengths = torch.diff(before, append=offsets[-1:, 0])
    starts = torch.repeat_interleave(starts + positions[:, 0] - before, lengths)
    return starts + torch.arange(len(starts), device=items.device)


def _run_starts(index: Tensor) -> Tensor:
    """Where runs of consecutive entries, cut at the ends of blocks, begin in an ascending `index`."""
    starts = torch.ones(len(index), dtype=torch.bool, device=index.device)
    starts[1:] = (torch.diff(index) != 1) | (index[1:] % BLOCK == 0)
    return starts.nonzero()[:, 0]
