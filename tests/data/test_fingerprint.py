"""A fingerprint changes with what it reads, and with nothing else."""

import dataclasses

import numpy as np

from taskarith_fast.data import ArraySplit
from taskarith_fast.data.fingerprint import fingerprint
from tests.loops.tiny import digits


def _with(task, split, change):
    images, labels = task.splits[split].get(range(len(task.splits[split])))
    pixels, numbers = images[:, 0].numpy().copy(), labels.numpy().copy()
    pixels, numbers = change(pixels, numbers)
    return dataclasses.replace(task, splits={**task.splits, split: ArraySplit(pixels, numbers)})


def test_pixels_labels_order_and_classes_count():
    task = digits()

    def pixel(images, labels):
        images[3, 0, 0] ^= 1
        return images, labels

    changes = [pixel, lambda i, n: (i, (n + 1) % 10), lambda i, n: (i[::-1].copy(), n[::-1].copy())]
    others = [_with(task, "val", change) for change in changes]
    others.append(dataclasses.replace(task, classes=tuple(f"digit {c}" for c in range(10))))
    assert len({fingerprint(t) for t in [task, *others]}) == 5
    assert fingerprint(_with(task, "val", lambda i, n: (i, n))) == fingerprint(task)


def test_only_the_splits_asked_for_count():
    task = digits()
    other = _with(task, "train", lambda images, labels: (255 - images, labels))
    assert fingerprint(task, ["val"]) == fingerprint(other, ["val"])
    assert fingerprint(task) != fingerprint(other)


def test_a_sample_sees_the_size_and_is_spread_over_the_split():
    task = digits()
    shorter = _with(task, "val", lambda images, labels: (images[:-1], labels[:-1]))
    assert fingerprint(task, ["val"], most=50) != fingerprint(shorter, ["val"], most=50)

    def last_half(images, labels):
        return np.concatenate([images[:100], 255 - images[100:]]), labels

    assert fingerprint(task, ["val"], most=50) != fingerprint(_with(task, "val", last_half), ["val"], most=50)
    assert fingerprint(task, ["val"], most=500) == fingerprint(task, ["val"])
