"""The shipped pack: what the manifest says, no leaks, and what happens to a damaged copy."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from taskarith_fast.data import Task, load_tasks
from taskarith_fast.data.pack import PACK_ROOT
from taskarith_fast.errors import ArgumentError, DataError
from tests.data.helpers import all_labels

NAMES = ["fashion", "mnist", "animals", "clipart", "emoji", "devanagari", "textile"]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return load_tasks()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A copy of the pack with one task in it."""
    manifest = json.loads((PACK_ROOT / "manifest.json").read_text())
    manifest["tasks"] = {"mnist": manifest["tasks"]["mnist"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(PACK_ROOT / "mnist.npz", tmp_path)
    return tmp_path


def change_entry(pack: Path, **fields: object) -> None:
    manifest = json.loads((pack / "manifest.json").read_text())
    manifest["tasks"]["mnist"].update(fields)
    (pack / "manifest.json").write_text(json.dumps(manifest))


def test_the_pack_has_its_seven_tasks_and_stays_small(tasks) -> None:
    assert list(tasks) == NAMES
    assert sum(path.stat().st_size for path in PACK_ROOT.rglob("*")) < 12e6


@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_enough_images_of_every_class(tasks, name) -> None:
    task = tasks[name]
    for split, least in (("train", 600), ("val", 200), ("test", 300)):
        counts = np.bincount(all_labels(task.splits[split]), minlength=len(task.classes))
        assert len(counts) == len(task.classes) and counts.min() > 0
        assert counts.sum() >= least


@pytest.mark.parametrize("name", NAMES)
def test_no_picture_is_in_two_splits_or_twice_in_one(tasks, name) -> None:
    seen: set[bytes] = set()
    for split in tasks[name].splits.values():
        images, _ = split.get(range(len(split)))
        digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
        assert len(set(digests)) == len(digests)
        assert seen.isdisjoint(digests)
        seen.update(digests)


@pytest.mark.parametrize("name", ["animals", "clipart", "emoji"])
def test_no_drawing_has_a_near_copy_in_the_training_split(tasks, name) -> None:
    limit = {"animals": 0.03}.get(name, 0.02) - 0.005  # thumbnails are made by another resizer than the build's
    splits = tasks[name].splits
    train, test = (
        splits[split].at_size(14).get(range(len(splits[split])))[0].float().flatten(1) / 255
        for split in ("train", "test")
    )
    assert float(torch.cdist(test, train, p=1).min()) / train.shape[1] >= limit


@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_a_licence_text_and_a_source(tasks, name) -> None:
    assert tasks[name].licence in {"MIT", "Apache-2.0", "OFL-1.1", "public-domain"}
    assert tasks[name].source
    text = (PACK_ROOT / "LICENSES" / f"{name}.txt").read_text(encoding="utf-8")
    assert len(text) > 500


def test_tasks_come_in_the_order_of_their_names() -> None:
    assert list(load_tasks(["textile", "mnist"])) == ["textile", "mnist"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"names must be among fashion, .*, got 'imagenet'"):
        load_tasks(["imagenet"])


def test_a_changed_file_is_refused(pack) -> None:
    data = bytearray((pack / "mnist.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (pack / "mnist.npz").write_bytes(data)
    with pytest.raises(DataError, match="sha256 must be 411118e8073f"):
        load_tasks(root=pack)


def test_a_missing_file_is_named(pack) -> None:
    (pack / "mnist.npz").unlink()
    with pytest.raises(DataError, match=r"mnist\.npz: no such file, but the manifest lists it"):
        load_tasks(root=pack)


def test_classes_and_counts_must_be_those_of_the_manifest(pack) -> None:
    change_entry(pack, classes=["zero", "one"])
    with pytest.raises(DataError, match="manifest lists 2 classes"):
        load_tasks(root=pack)
    change_entry(pack, classes=list("0123456789"), counts={"train": 1, "val": 1, "test": 1})
    with pytest.raises(DataError, match="the manifest counts"):
        load_tasks(root=pack)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"tasks": 3}', '{"tasks": {"mnist": {"file": "mnist.npz"}}}'])
def test_a_damaged_manifest_is_one_line(pack, text) -> None:
    (pack / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="not a manifest") as error:
        load_tasks(root=pack)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_manifest_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json: no such file"):
        load_tasks(root=tmp_path)
