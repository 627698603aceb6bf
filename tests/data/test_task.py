"""Splits, the papers' validation rule, and the checks on what goes into a task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from taskarith_fast.data import ArraySplit, DecodedSplit, Split, SubsetSplit, Task, validation_split
from taskarith_fast.data.task import resize_uint8
from taskarith_fast.errors import DataError
from tests.data.helpers import all_labels, array_split, grey_images


class CountingSplit:
    """A split of any length whose labels are the indices; it holds no pixels."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def get(self, indices):
        index = torch.as_tensor(indices)
        return torch.zeros(len(index), 3, 4, 4, dtype=torch.uint8), index


def test_validation_split_of_mnist_starts_where_the_published_code_asserts() -> None:
    train, val = validation_split(CountingSplit(60000))
    assert (len(train), len(val)) == (55000, 5000)
    assert int(train.indices[0]) == 36044


@pytest.mark.parametrize("length", [10, 57, 1000, 73257])
def test_validation_split_equals_torch_random_split(length: int) -> None:
    train, val = validation_split(CountingSplit(length))
    held_out = min(int(0.1 * length), 5000)
    lengths = [length - held_out, held_out]
    expected = torch.utils.data.random_split(range(length), lengths, torch.Generator().manual_seed(0))
    assert train.indices.tolist() == list(expected[0].indices)
    assert val.indices.tolist() == list(expected[1].indices)


def test_validation_split_of_too_few_images_is_an_error() -> None:
    with pytest.raises(DataError, match="at least 10"):
        validation_split(CountingSplit(9))


def test_grey_and_colour_arrays_give_three_channels() -> None:
    grey = grey_images(4)
    images, labels = ArraySplit(grey, np.arange(4)).get([2, 0])
    assert images.shape == (2, 3, 8, 8) and images.dtype == torch.uint8 and labels.tolist() == [2, 0]
    assert (images[0] == torch.from_numpy(grey[2])).all()
    colour = np.stack([grey, grey // 2, grey // 4], axis=-1)
    images, _ = ArraySplit(colour, np.arange(4)).get([3])
    assert (images[0].permute(1, 2, 0).numpy() == colour[3]).all()


def test_array_split_keeps_its_own_copy() -> None:
    images = grey_images(3)
    split = ArraySplit(images, np.zeros(3, np.int64))
    before = split.get([0])[0].clone()
    images[:] = 0
    assert (split.get([0])[0] == before).all()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), np.zeros(2, np.int64), "images must be uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), np.zeros(2, np.int64), "images must be uint8"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(3, np.int64), r"labels must be integers \[N=2\]"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2), r"labels must be integers \[N=2\], got float64"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 5]), r"must lie in \[0, 5\), one per class, got 5 at 1"),
        (np.zeros((2, 4, 4), np.uint8), np.array([-1, 0]), "got -1 at 0"),
    ],
)
def test_array_split_rejects_what_is_not_an_image_or_a_label(images, labels, message) -> None:
    with pytest.raises(DataError, match=message):
        ArraySplit(images, labels, num_classes=5)


def test_decoded_split_reads_on_access_and_checks_labels() -> None:
    read = []

    def fetch(index: int) -> tuple[Image.Image, int]:
        read.append(index)
        return Image.new("L", (6 + index, 9), 10 * index), index

    split = DecodedSplit(fetch, length=3, num_classes=2)
    assert len(split) == 3 and read == []
    images, labels = split.at_size(5).get([1, 0])
    assert images.shape == (2, 3, 5, 5) and images[:, 0, 0, 0].tolist() == [10, 0] and labels.tolist() == [1, 0]
    assert read == [1, 0]
    with pytest.raises(DataError, match="differ in size"):
        split.get([0, 1])
    with pytest.raises(DataError, match=r"got 2 at 0"):
        split.get([2])


def test_resize_scales_the_shorter_side_and_cuts_the_centre() -> None:
    images = torch.zeros(1, 1, 10, 30, dtype=torch.uint8)
    images[..., 10:20] = 200
    assert (resize_uint8(images, 10) == 200).all()
    assert resize_uint8(images, 5).shape == (1, 1, 5, 5)


def test_resize_averages_when_it_shrinks() -> None:
    board = (torch.arange(16)[:, None] + torch.arange(16)[None]) % 2 * 254
    small = resize_uint8(board[None, None].to(torch.uint8), 4)
    assert (small.int() - 127).abs().max() <= 16  # without antialiasing a checkerboard gives 0 or 254


def test_at_size_is_computed_once() -> None:
    split = array_split(6)
    assert split.at_size(8) is split
    assert split.at_size(4) is split.at_size(4)
    assert isinstance(SubsetSplit(split, [1]).at_size(4), Split)


def test_subset_keeps_its_order() -> None:
    assert all_labels(SubsetSplit(array_split(9), [5, 3, 4])) == [2, 0, 1]


def test_a_task_needs_three_splits_with_images() -> None:
    split = array_split(3)
    with pytest.raises(DataError, match="lacks val, test"):
        Task("small", ("a", "b", "c"), {"train": split})
    empty = SubsetSplit(split, [])
    with pytest.raises(DataError, match="no sample in its val split"):
        Task("small", ("a", "b", "c"), {"train": split, "val": empty, "test": split})
