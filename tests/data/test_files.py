"""Tasks from an .npz file and from folders of pictures."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest

from taskarith_fast.data import load_folder, load_npz, save_npz
from taskarith_fast.errors import DataError
from tests.data.helpers import all_labels, grey_images, write_folder, write_png

CLASSES = ["ant", "bee"]


def arrays(**changes) -> dict[str, np.ndarray]:
    content = {
        f"{split}_{what}": value
        for split, count in (("train", 20), ("val", 4), ("test", 6))
        for what, value in (("images", grey_images(count)), ("labels", np.arange(count) % 2))
    }
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


def test_npz_round_trip(tmp_path) -> None:
    content = arrays()
    save_npz(tmp_path / "insects.npz", CLASSES, **content)
    task = load_npz(tmp_path / "insects.npz", licence="MIT")
    assert (task.name, task.classes, task.licence) == ("insects", ("ant", "bee"), "MIT")
    for split in ("train", "val", "test"):
        images, labels = task.splits[split].get(range(len(task.splits[split])))
        assert (images[:, 0].numpy() == content[f"{split}_images"]).all()
        assert (labels.numpy() == content[f"{split}_labels"]).all()


def test_npz_without_validation_images_gets_them_from_training(tmp_path) -> None:
    save_npz(tmp_path / "a.npz", CLASSES, **arrays(val_images=None, val_labels=None))
    task = load_npz(tmp_path / "a.npz")
    assert [len(task.splits[split]) for split in ("train", "val", "test")] == [18, 2, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "test split: lacks the array test_labels"),
        (
            {"train_labels": np.arange(20)},
            r"train split: labels must lie in \[0, 2\), one per class, got 2 at 2",
        ),
        ({"test_images": np.zeros((6, 8), np.uint8)}, "test split: images must be uint8"),
        ({"val_labels": np.zeros(3, np.int64)}, r"val split: labels must be integers \[N=4\]"),
    ],
)
def test_npz_with_a_wrong_array_names_split_and_array(tmp_path, changes, message) -> None:
    save_npz(tmp_path / "a.npz", CLASSES, **arrays(**changes))
    with pytest.raises(DataError, match=message):
        load_npz(tmp_path / "a.npz")


def test_npz_needs_class_names(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    with pytest.raises(DataError, match="classes must be an array of at least two strings, got none"):
        load_npz(tmp_path / "a.npz")


def test_npz_refuses_pickles(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", **arrays(), classes=np.array([{"ant": 0}], dtype=object))
    with pytest.raises(DataError, match=r"not a readable \.npz of plain arrays"):
        load_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("part", ["empty", "text", "half", "pickle", "directory"])
def test_a_file_that_is_no_npz_is_one_line(tmp_path, part) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, CLASSES, **arrays())
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "text": b"hello",
        "half": whole[: len(whole) // 2],
        "pickle": pickle.dumps([1, 2]),
    }
    if part == "directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content[part])
    with pytest.raises(DataError, match=r"a\.npz: (not a readable|no such file)") as error:
        load_npz(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("member", ["train_images.npy", "test_images.npy"])
def test_a_flipped_bit_inside_an_npz_is_found(tmp_path, member) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, CLASSES, **arrays())
    with zipfile.ZipFile(path) as archive:
        member_info = archive.getinfo(member)
    data = bytearray(path.read_bytes())
    data[member_info.header_offset + member_info.compress_size // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a readable"):
        load_npz(path)


def test_folder_with_three_splits(tmp_path) -> None:
    write_folder(tmp_path, {"train": 3, "val": 1, "test": 2})
    task = load_folder(tmp_path, name="pets")
    assert (task.name, task.classes) == ("pets", ("cat", "dog"))
    assert all_labels(task.splits["train"]) == [0, 0, 0, 1, 1, 1]
    images, labels = task.splits["test"].get([3, 0])
    assert images.shape == (2, 3, 8, 10) and images[:, 0, 0, 0].tolist() == [17, 0] and labels.tolist() == [1, 0]


def test_folder_without_val_carves_it_out_of_train(tmp_path) -> None:
    write_folder(tmp_path, {"train": 10, "test": 1})
    task = load_folder(tmp_path)
    assert [len(task.splits[split]) for split in ("train", "val", "test")] == [18, 2, 2]
    assert sorted(all_labels(task.splits["train"]) + all_labels(task.splits["val"])) == [0] * 10 + [1] * 10


def test_folder_labels_follow_the_training_names_when_a_test_class_is_absent(tmp_path) -> None:
    write_folder(tmp_path, {"train": 2, "val": 1})
    write_png(tmp_path / "test" / "dog" / "0.png", 5)
    assert all_labels(load_folder(tmp_path).splits["test"]) == [1]


def test_folder_ignores_files_that_are_no_pictures(tmp_path) -> None:
    write_folder(tmp_path, {"train": 2, "val": 1, "test": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    assert len(load_folder(tmp_path).splits["train"]) == 4


def test_folder_errors_are_one_line(tmp_path) -> None:
    with pytest.raises(DataError, match="no folder train"):
        load_folder(tmp_path / "absent")
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        load_folder(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="no pictures in its class folders"):
        load_folder(tmp_path)
    write_folder(tmp_path, {"train": 2, "val": 1, "test": 1})
    write_png(tmp_path / "test" / "horse" / "0.png", 0)
    with pytest.raises(DataError, match="folder horse is not one of the 2 training classes"):
        load_folder(tmp_path)


def test_a_damaged_picture_is_named(tmp_path) -> None:
    write_folder(tmp_path, {"train": 2, "val": 1, "test": 1})
    (tmp_path / "test" / "cat" / "00.png").write_bytes(b"\x89PNG broken")
    task = load_folder(tmp_path)
    with pytest.raises(DataError, match=r"cat/00\.png: not a readable picture"):
        task.splits["test"].get([0])
