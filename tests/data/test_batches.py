"""Batches: order, normalisation, augmentation."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from taskarith_fast.data import batches
from taskarith_fast.errors import ArgumentError
from tests.data.helpers import array_split
from tests.data.test_task import CountingSplit

plain = partial(batches, image_size=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def labels_of(**options) -> list[int]:
    return torch.cat([labels for _, labels in plain(CountingSplit(50), batch_size=8, **options)]).tolist()


def test_order_without_shuffle_is_the_order_of_the_split() -> None:
    assert labels_of() == list(range(50))


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    first = labels_of(shuffle=True, seed=3, epoch=2)
    torch.manual_seed(99)
    torch.rand(7)
    assert labels_of(shuffle=True, seed=3, epoch=2) == first
    assert sorted(first) == list(range(50)) and first != list(range(50))
    assert labels_of(shuffle=True, seed=3, epoch=3) != first
    assert labels_of(shuffle=True, seed=2, epoch=3) != first


def test_order_does_not_depend_on_the_batch_size() -> None:
    small = torch.cat([y for _, y in plain(CountingSplit(20), batch_size=3, shuffle=True, seed=1)])
    large = torch.cat([y for _, y in plain(CountingSplit(20), batch_size=20, shuffle=True, seed=1)])
    assert torch.equal(small, large)


def test_batching_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    labels_of(shuffle=True, augment=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_pixels_are_normalised_per_channel() -> None:
    split = array_split(5)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    ((images, labels),) = batches(split, batch_size=9, image_size=8, mean=mean, std=std)
    raw = split.get(range(5))[0].double() / 255
    expected = (raw - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)


def test_the_last_batch_may_be_smaller_and_images_have_the_asked_size() -> None:
    sizes = [tuple(x.shape) for x, _ in batches(
        array_split(7, height=10, width=12), batch_size=3, image_size=6, mean=(0, 0, 0), std=(1, 1, 1)
    )]  # fmt: skip
    assert sizes == [(3, 3, 6, 6), (3, 3, 6, 6), (1, 3, 6, 6)]


def test_augmentation_shifts_and_repeats_itself_for_one_epoch_only() -> None:
    split = array_split(12, height=28, width=28)
    at = partial(batches, split, batch_size=12, image_size=28, mean=(0, 0, 0), std=(1, 1, 1), augment=True)
    ((first, _),), ((again, _),), ((later, _),) = at(epoch=0), at(epoch=0), at(epoch=1)
    assert torch.equal(first, again) and not torch.equal(first, later)
    original = split.get(range(12))[0].float() / 255
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    for image, source in zip(first, original, strict=True):
        inner = image[:, 4:-4, 4:-4]
        assert any(torch.allclose(inner, source[:, 4 + dy : 24 + dy, 4 + dx : 24 + dx], atol=1e-6) for dy, dx in shifts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"image_size": 0}, "must be at least 1"),
        ({"mean": (0.0,)}, "mean and std must have 3 entries, got 1 and 3"),
        ({"seed": -1}, "must not be negative, got -1"),
    ],
)
def test_bad_arguments_are_named_before_the_first_batch(options, message) -> None:
    arguments = {"batch_size": 2, "image_size": 4, "mean": (0, 0, 0), "std": (1, 1, 1), **options}
    with pytest.raises(ArgumentError, match=message):
        batches(CountingSplit(4), **arguments)


def test_skipped_batches_change_nothing_about_the_others_and_read_no_image() -> None:
    options = {"batch_size": 8, "image_size": 28, "mean": (0,) * 3, "std": (1,) * 3, "shuffle": True, "augment": True}
    whole = list(batches(array_split(50), **options))
    rest = list(batches(array_split(50), **options, skip=4))
    assert len(rest) == 3 and not list(batches(array_split(50), **options, skip=7))
    for (images, labels), (same_images, same_labels) in zip(whole[4:], rest, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)

    read = []

    class Recording(CountingSplit):
        def get(self, indices):
            read.extend(torch.as_tensor(indices).tolist())
            return super().get(indices)

    list(plain(Recording(50), batch_size=8, skip=5))
    assert read == list(range(40, 50))


def test_the_parts_of_a_batch_are_the_batch_and_none_is_empty() -> None:
    options = {"batch_size": 8, "image_size": 28, "mean": (0,) * 3, "std": (1,) * 3, "shuffle": True, "augment": True}
    whole = list(batches(array_split(18), **options))
    parts = [list(batches(array_split(18), **options, part=(i, 3))) for i in range(3)]
    for number in (0, 1):
        assert [len(part[number][1]) for part in parts] == [3, 3, 2]
        assert torch.equal(torch.cat([part[number][0] for part in parts]), whole[number][0])
        assert torch.equal(torch.cat([part[number][1] for part in parts]), whole[number][1])
    assert [len(part[2][1]) for part in parts] == [1, 1, 1]
    assert torch.equal(parts[1][2][0], parts[2][2][0])  # two images for three parts: the last one twice


@pytest.mark.parametrize("wrong", [{"skip": -1}, {"part": (1, 1)}, {"part": (-1, 2)}])
def test_impossible_parts_are_refused(wrong) -> None:
    with pytest.raises(ArgumentError, match="skip must not be negative and part one of"):
        plain(array_split(5), batch_size=2, **wrong)
