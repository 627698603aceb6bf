"""The eight paper datasets, read from small stand-ins in the same layout."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torchvision.datasets
from PIL import Image

from taskarith_fast.data import load_prompts, load_torchvision
from taskarith_fast.data.prompts import DATASETS
from taskarith_fast.errors import ArgumentError, DataError
from tests.data.helpers import all_labels, write_png

EUROSAT_FOLDERS = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
    "Residential", "River", "SeaLake",
)  # fmt: skip


class FakeDataset:
    """Items are pairs of a picture and a label, as torchvision's datasets give them."""

    def __init__(self, length: int, num_classes: int, classes: list[str] | None = None) -> None:
        self.length, self.num_classes = length, num_classes
        self.classes = classes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (12, 9), index % 256), index % self.num_classes


def sizes(task) -> list[int]:
    return [len(task.splits[split]) for split in ("train", "val", "test")]


@pytest.fixture
def offline(monkeypatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("a loader opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_dataset_gives_a_hint_and_downloads_nothing(tmp_path, offline, name) -> None:
    with pytest.raises(DataError, match=rf"^{name}: not found below .*; put .* there") as error:
        load_torchvision(name, tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused(tmp_path) -> None:
    with pytest.raises(ArgumentError, match=r"name must be one of cars, .*, got 'cifar10'"):
        load_torchvision("cifar10", tmp_path)


def test_mnist_has_the_published_split(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        torchvision.datasets,
        "MNIST",
        lambda root, train, download: FakeDataset(60000 if train else 10000, 10),
    )
    task = load_torchvision("MNIST", tmp_path)
    assert sizes(task) == [55000, 5000, 10000]
    images, labels = task.splits["train"].get([0])
    assert labels.item() == 36044 % 10 and (images == 36044 % 256).all()


def test_svhn_gtsrb_and_cars_use_their_own_test_sets(tmp_path, monkeypatch) -> None:
    cars = [f"Make Model {i}" for i in range(196)]
    fakes = {
        "SVHN": lambda root, split, download: FakeDataset(100 if split == "train" else 30, 10),
        "GTSRB": lambda root, split, download: FakeDataset(200 if split == "train" else 50, 43),
        "StanfordCars": lambda root, split, download: FakeDataset(400 if split == "train" else 300, 196, cars),
    }
    for attribute, fake in fakes.items():
        monkeypatch.setattr(torchvision.datasets, attribute, fake)
    assert sizes(load_torchvision("svhn", tmp_path)) == [90, 10, 30]
    assert sizes(load_torchvision("gtsrb", tmp_path)) == [180, 20, 50]
    task = load_torchvision("Cars", tmp_path)
    assert sizes(task) == [360, 40, 300] and task.classes == load_prompts("cars").classes


def test_a_label_outside_the_classes_is_found_when_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, train, download: FakeDataset(40, 11))
    task = load_torchvision("mnist", tmp_path)
    with pytest.raises(DataError, match=r"must lie in \[0, 10\)"):
        all_labels(task.splits["test"])


def test_a_failed_download_is_one_line(tmp_path, monkeypatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise URLError("name or service not known")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(DataError, match=r"mnist: download failed \(name or service not known\); put MNIST/raw/"):
        load_torchvision("mnist", tmp_path, download=True)


def write_dtd(root: Path, classes: tuple[str, ...]) -> None:
    labels = root / "dtd" / "dtd" / "labels"
    labels.mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        lines = [f"{name}/{name}_{number:04d}.jpg" for name in classes]
        for label, line in enumerate(lines):
            write_png(root / "dtd" / "dtd" / "images" / line, 4 * label + number)
        (labels / f"{split}1.txt").write_text("\n".join(reversed(lines)) + "\n")


def test_dtd_trains_on_train_and_val_in_folder_order(tmp_path) -> None:
    write_dtd(tmp_path, load_prompts("dtd").classes)
    task = load_torchvision("DTD", tmp_path)
    assert sizes(task) == [85, 9, 47]
    assert all_labels(task.splits["test"]) == list(range(47))
    held_out = sorted(all_labels(task.splits["train"]) + all_labels(task.splits["val"]))
    assert held_out == sorted([*range(47), *range(47)])


def test_a_class_too_few_is_an_error(tmp_path) -> None:
    write_dtd(tmp_path, load_prompts("dtd").classes[:-1])
    with pytest.raises(DataError, match="dtd: must have 47 classes, got 46"):
        load_torchvision("dtd", tmp_path)


def test_a_class_of_another_name_is_an_error(tmp_path) -> None:
    write_dtd(tmp_path, (*load_prompts("dtd").classes[:-1], "zzz"))
    with pytest.raises(DataError, match="dtd: class 46 must be 'zigzagged', got 'zzz'"):
        load_torchvision("dtd", tmp_path)


def test_eurosat_holds_out_a_tenth_of_each_class_twice(tmp_path) -> None:
    for label, name in enumerate(EUROSAT_FOLDERS):
        for number in range(20):
            write_png(tmp_path / "eurosat" / "2750" / name / f"{name}_{number}.png", label)
    task = load_torchvision("eurosat", tmp_path)
    assert sizes(task) == [160, 20, 20]
    assert all_labels(task.splits["val"]) == [label for label in range(10) for _ in range(2)]
    images, labels = task.splits["test"].get(range(20))
    assert images[:, 0, 0, 0].tolist() == labels.tolist()


def test_eurosat_prefers_the_papers_folders(tmp_path) -> None:
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for label, name in enumerate(EUROSAT_FOLDERS):
            for number in range(count):
                write_png(tmp_path / "EuroSAT_splits" / split / name / f"{number}.png", label)
    assert sizes(load_torchvision("eurosat", tmp_path)) == [30, 10, 20]


def test_resisc45_follows_its_lists_and_carves_val_out_of_train(tmp_path) -> None:
    folder = tmp_path / "resisc45"
    names = [name.replace(" ", "_") for name in load_prompts("resisc45").classes]
    for label, name in enumerate(names):
        for number in (1, 2, 3, 4):
            write_png(folder / "NWPU-RESISC45" / name / f"{name}_{number}.jpg", label)
    for split, numbers in (("train", (1, 3)), ("val", (4,)), ("test", (2,))):
        lines = [f"{name}_{number}.jpg" for name in names for number in numbers]
        (folder / f"resisc45-{split}.txt").write_text("\n".join(lines))
    assert sizes(load_torchvision("resisc45", tmp_path)) == [81, 9, 45]


def write_sun397(root: Path) -> None:
    folder = root / "SUN397"
    folder.mkdir()
    names = [name.replace(" ", "_") for name in load_prompts("sun397").classes]
    names = [f"/{name[0]}/{name.replace('_outdoor', '/outdoor')}" for name in names]
    (folder / "ClassName.txt").write_text("\n".join(names) + "\n")
    for number, file in ((1, "Training_01.txt"), (2, "Testing_01.txt")):
        (folder / file).write_text("\n".join(f"{name}/sun_{number}.jpg" for name in reversed(names)) + "\n")
    for name in names[:3]:
        write_png(folder / name[1:] / "sun_2.jpg", 0)


def test_sun397_reads_partition_one(tmp_path) -> None:
    write_sun397(tmp_path)
    task = load_torchvision("SUN397", tmp_path)
    assert sizes(task) == [358, 39, 397]
    assert task.splits["test"].get([2, 0, 1])[1].tolist() == [2, 0, 1]


def test_sun397_with_an_unknown_class_in_a_list_is_an_error(tmp_path) -> None:
    write_sun397(tmp_path)
    (tmp_path / "SUN397" / "Testing_01.txt").write_text("/m/moon/sun_1.jpg\n")
    with pytest.raises(DataError, match="names the class 'moon', which does not exist"):
        load_torchvision("sun397", tmp_path)
