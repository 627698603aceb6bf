"""The images or texts of a fine-tuning run: an endless stream for each task, cut over the processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from taskarith_fast import data
from taskarith_fast.inputs import Inputs
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.distributed import World
from taskarith_fast.loops.evaluate import batches_of


def stream(
    encoder: Any, split: data.Split, config: FinetuneConfig, tasks: int, world: World, skip: int
) -> Iterator[tuple[Inputs, Tensor, float]]:
    """This process's part of shuffled batches of one task's share, epoch after epoch, without the first `skip`.

    A part comes with its weight: the mean over the processes of weight times the part's mean loss is the mean
    loss of the batch.
    """
    size = config.batch_size // tasks
    first, skip = divmod(skip, -(-len(split) // size))
    for epoch in itertools.count(first):
        batches = batches_of(
            encoder,
            split,
            batch_size=size,
            image_size=config.image_size,
            shuffle=True,
            seed=config.seed,
            epoch=epoch,
            augment=config.augment,
            device=world.device,
            skip=skip,
            part=(world.rank, world.size),
        )
        for number, (images, labels) in enumerate(batches, skip):
            count = min(size, len(split) - number * size)
            yield images, labels, world.part(count) * world.size / count
        skip = 0
