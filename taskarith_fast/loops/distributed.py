"""One fine-tuning run in several processes, as torchrun starts them.

Every process computes its part of every batch and the gradients are averaged, so that all take the step of the
whole batch: the result is that of one process, to rounding, and the same bytes in each of them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from taskarith_fast.loops.runtime import resolve_device
from taskarith_fast.models.blocks import transformer_blocks

_groups = itertools.count()


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place."""

    rank: int
    size: int
    device: torch.device

    def part(self, images: int) -> int:
        """How many of a batch of `images` images this process computes."""
        return images // self.size + (self.rank < images % self.size)

    def wrap(self, model: nn.Module, sharding: str) -> nn.Module:
        """The model as it is, or such that its gradients are averaged over the processes."""
        if sharding == "fsdp":
            return _shard(model, self)
        if self.size == 1:
            return model
        # A static graph may lack tensors that features do not depend on, such as DINOv2's mask token.
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, static_graph=True)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of a tensor that each of them has."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.size


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Take part in the run that torchrun started, or be its only process.

    A process group that the caller has opened is used and left open.

    Args:
        device: As `resolve_device`; "auto" and "cuda" mean the GPU of the process.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("LOCAL_RANK", "0")
    where = resolve_device(device)
    if size == 1 and not dist.is_initialized():
        yield World(0, 1, where)
        return
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", int(local))
        torch.cuda.set_device(where)
    ours = not dist.is_initialized()
    if ours:
        store, rank, size = next(dist.rendezvous("env://"))
        # A prefix for every group of this process: a second one would find the addresses of the first.
        store = dist.PrefixStore(f"taskarith{next(_groups)}", store)
        backend = "nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), where)
    finally:
        if ours:
            dist.destroy_process_group()


def is_main() -> bool:
    """Tell whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def averaging(model: Any, enabled: bool) -> AbstractContextManager[None]:
    """Average the gradients over the processes in the pass of the block, or keep adding up each one's own."""
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if enabled else model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(enabled)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the parts that the processes hold; every process must call it."""
    # A DTensor by its method: its module is slow to import.
    return getattr(tensor, "full_tensor", lambda: tensor)()


def _shard(model: nn.Module, world: World) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in transformer_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
