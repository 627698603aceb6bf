"""Counting what a piece of torch code moves and computes, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Traffic(TorchDispatchMode):
    """Sums the bytes that each torch operation reads and writes; views and empty results move nothing."""

    _FREE = ("empty", "detach", "alias", "_unsafe_view", "new_empty")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(self._FREE):
            read = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
            written = [o for o in tree_leaves(out) if isinstance(o, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in (*read, *written))
        return out


def bytes_of(run: Callable[[], Any]) -> int:
    """Bytes read and written by the torch operations of `run`, each operation by itself."""
    with _Traffic() as traffic:
        run()
    return traffic.bytes


def flops_of(run: Callable[[], Any]) -> int:
    """FLOPs of the matrix products of `run`."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
