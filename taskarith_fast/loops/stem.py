"""Keep what the blocks before the first edited one give, so that edits of later blocks need not compute them again.

Sparse and layer-wise task vectors often leave the first blocks alone: whatever the scales, their outputs are those of
the base model. They are kept, image batch by image batch, and handed out in place of running the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.blocks import transformer_blocks


class Stem:
    """The blocks of an encoder that no edit reaches, and their outputs.

    Args:
        encoder: Any module; one without blocks is run whole.
        moved: Names of the parameters and buffers that edits change.
        limit: Bytes of outputs kept at most; batches beyond run whole.
    """

    def __init__(self, encoder: nn.Module, moved: Collection[str], limit: int) -> None:
        self.blocks = untouched_blocks(encoder, moved)
        self._left = limit
        self._kept: dict[Hashable, Any] = {}
        self._trusted = False

    def run(self, key: Hashable, forward: Callable[[], Tensor]) -> Tensor:
        """Run an encoder's forward pass of one batch, by the kept outputs where there are some.

        The first use of kept outputs is checked against a whole pass, bit for bit. If the two differ, the model is not
        what its structure says, and all passes are whole from then on.

        Args:
            key: Names the batch; the same images must come under the same key.
            forward: Runs the encoder on the batch.
        """
        if not self.blocks:
            return forward()
        if key not in self._kept:
            with self._keeping(key):
                return forward()
        with self._replaying(self._kept[key]):
            out = forward()
        if not self._trusted:
            whole = forward()
            self._trusted = torch.equal(out, whole)
            if not self._trusted:
                self.blocks, out = [], whole
                self._kept.clear()
        return out

    @contextmanager
    def _keeping(self, key: Hashable) -> Iterator[None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            size = sum(t.numel() * t.element_size() for t in _tensors(output))
            if size <= self._left:
                self._left -= size
                self._kept[key] = output

        handle = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _replaying(self, output: Any) -> Iterator[None]:
        for block in self.blocks:
            block.forward = lambda *args, **kwargs: output  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward


def untouched_blocks(encoder: nn.Module, moved: Collection[str]) -> list[nn.Module]:
    """The first blocks of an encoder whose outputs no change of the tensors called `moved` can alter.

    None, if a tensor moves that is registered before the blocks, as all embeddings are.
    """
    try:
        blocks = transformer_blocks(encoder)
    except ArgumentError:
        return []
    if any("forward" in vars(block) for block in blocks):  # its forward is replaced already, by something else
        return []
    own = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    reached = {id(own[name]) for name in moved if name in own}
    inside = [{id(t) for t in (*block.parameters(), *block.buffers())} for block in blocks]
    every = set().union(*inside)
    for tensor in own.values():
        if id(tensor) in every:
            break
        if id(tensor) in reached:
            return []
    if any(id(buffer) in reached - every for buffer in encoder.buffers()):
        return []
    first = next((i for i, ids in enumerate(inside) if ids & reached), len(blocks))
    return blocks[:first]


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [t for item in output for t in _tensors(item)] if isinstance(output, (tuple, list)) else []
