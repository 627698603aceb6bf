"""Batches of normalised images, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from taskarith_fast.data.task import Split, at_size
from taskarith_fast.errors import ArgumentError


def batches(
    split: Split,
    *,
    batch_size: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    augment: bool = False,
    device: str | torch.device = "cpu",
    skip: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate once over a split.

    Order and augmentation are pure functions of (seed, epoch): the same arguments give the same batches on
    every run, whatever was drawn elsewhere. The last batch may be smaller.

    Args:
        split: The images; in-memory splits keep their resized copy for later calls.
        batch_size: Images per batch, at least 1.
        image_size: Side S in pixels; the shorter side is scaled to it (bilinear, antialiased), and the
            centre is cut out.
        mean: Per channel, subtracted after scaling pixels to [0, 1].
        std: Per channel, the divisor after that.
        shuffle: Permute the images; False keeps the split's order.
        seed: Seed of order and augmentation, not negative.
        epoch: Number of the pass, not negative.
        augment: Shift each image by up to S/14 pixels each way, repeating its edge. No mirroring: digits and
            letters would change their class.
        device: Where the batches go; pixels travel as uint8.
        skip: Batches to leave out at the beginning, without reading their images; the others stay the same.
        part: (i, n) gives the i-th of n parts of every batch, as equal as can be. A part is never empty: where
            a batch has fewer images than parts, its last image is also in the parts that would be.

    Yields:
        Images float32 [B, 3, S, S] and labels int64 [B].

    Raises:
        ArgumentError: If batch_size or image_size is not positive, mean or std does not have three entries,
            seed, epoch or skip is negative, or there is no such part.
    """
    check_pass(batch_size, seed, epoch, skip, part)
    if image_size < 1:
        raise ArgumentError(f"image_size must be at least 1, got {image_size}")
    if len(mean) != 3 or len(std) != 3:
        raise ArgumentError(f"mean and std must have 3 entries, got {len(mean)} and {len(std)}")
    split = at_size(split, image_size)
    return _iterate(split, batch_size, image_size, mean, std, shuffle, seed, epoch, augment, device, skip, part)


def _iterate(
    split: Split,
    batch_size: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    shuffle: bool,
    seed: int,
    epoch: int,
    augment: bool,
    device: str | torch.device,
    skip: int,
    part: tuple[int, int],
) -> Iterator[tuple[Tensor, Tensor]]:
    order, generator = ordered(len(split), shuffle, seed, epoch)
    # (x / 255 - mean) / std as one multiply-add
    scale = (1 / (255 * torch.tensor(std, dtype=torch.float64))).float().view(3, 1, 1).to(device)
    shift = -(torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64))
    shift = shift.float().view(3, 1, 1).to(device)
    reach = max(1, image_size // 14)
    for number, indices in enumerate(order.split(batch_size)):
        # Drawn for every batch and the whole of it, whatever is left out.
        corners = torch.randint(0, 2 * reach + 1, (len(indices), 2), generator=generator) if augment else None
        if number < skip:
            continue
        chosen = part_of(len(indices), part)
        images, labels = split.get(indices[chosen])
        if corners is not None:
            images = _shifted(images, corners[chosen], reach)
        yield images.to(device).float().mul_(scale).add_(shift), labels.to(device)


def ordered(count: int, shuffle: bool, seed: int, epoch: int) -> tuple[Tensor, torch.Generator]:
    """The order of a pass over `count` samples, int64 [count], and the generator to draw the rest of the pass from."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
    return torch.randperm(count, generator=generator) if shuffle else torch.arange(count), generator


def part_of(count: int, part: tuple[int, int]) -> Tensor:
    """Places of the i-th of n parts of a batch of `count`, never none."""
    chosen = torch.arange(count).tensor_split(part[1])[part[0]]
    return chosen if len(chosen) else torch.tensor([count - 1])


def check_pass(batch_size: int, seed: int, epoch: int, skip: int, part: tuple[int, int]) -> None:
    """Refuse a pass over a split that cannot be made."""
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
    if seed < 0 or epoch < 0:
        raise ArgumentError(f"seed and epoch must not be negative, got {seed} and {epoch}")
    if skip < 0 or not 0 <= part[0] < part[1]:
        raise ArgumentError(f"skip must not be negative and part one of (0, n) to (n - 1, n), got {skip} and {part}")


def _shifted(images: Tensor, corners: Tensor, reach: int) -> Tensor:
    """Cut each image of uint8 [B, 3, S, S] out of itself with `reach` pixels of edge around, at its corner [B, 2]."""
    size = images.shape[-1]
    padded = functional.pad(images.float(), (reach,) * 4, mode="replicate").to(torch.uint8)
    return torch.stack([padded[i, :, y : y + size, x : x + size] for i, (y, x) in enumerate(corners.tolist())])
