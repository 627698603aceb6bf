"""The eight datasets of the task-arithmetic papers, from files that the user has, with the papers' splits.

Cars, DTD, EuroSAT, GTSRB, MNIST, RESISC45, SUN397 and SVHN. Where a dataset has no validation split of its
own, it is carved out of the training images by `validation_split`, from the order that the papers'
ImageFolder layouts give (sorted by class, then by file name), so that the same images are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from taskarith_fast.data.folder import class_folders, file_split, list_pictures
from taskarith_fast.data.prompts import load_prompts
from taskarith_fast.data.task import DecodedSplit, Split, SubsetSplit, Task, validation_split
from taskarith_fast.errors import ArgumentError, DataError

_SUN397_PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
_SUN397_PARTITIONS_MD5 = "29a205c0a0129d21f36cbecfefe81881"
_EUROSAT_HELD_OUT = 270  # images per class in val and in test; 21600 of the 27000 remain for training

_Splits = tuple[dict[str, Split], Sequence[str] | None]  # and the class names found on disk, if there are any


def load_torchvision(name: str, root: str | Path, download: bool = False) -> Task:
    """Load one of the eight datasets of the papers.

    Class names are those of `load_prompts`. Nothing is fetched unless `download` is true. RESISC45 must be
    put in place by hand, and so must Cars, whose official host is gone.

    Args:
        name: "cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397" or "svhn", upper or lower case.
        root: Folder below which torchvision's layout of the dataset is looked for; for EuroSAT also the
            papers' EuroSAT_splits/{train,val,test}.
        download: Let torchvision fetch what is missing.

    Raises:
        ArgumentError: If the name is not one of the eight.
        DataError: If the dataset is missing or incomplete, or its classes are not the expected ones.
    """
    key = name.lower()
    if key not in _READERS:
        raise ArgumentError(f"name must be one of {', '.join(_READERS)}, got {name!r}")
    read, layout = _READERS[key]
    classes = load_prompts(key).classes
    try:
        splits, found = read(Path(root), download)
    except DataError:
        raise
    except URLError as error:
        raise DataError(f"{name}: download failed ({error.reason}); put {layout} below {root}") from None
    except ImportError as error:
        raise DataError(f"{name}: needs the package {error.name} to be read (pip install {error.name})") from None
    except (OSError, RuntimeError, ValueError) as error:
        hint = f" ({_first_line(error)})" if download else "" if key in _BY_HAND else ", or pass download=True"
        raise DataError(f"{name}: not found below {root}; put {layout} there{hint}") from None
    if found is not None:
        _check_classes(name, found, classes)
    if "val" not in splits:
        splits["train"], splits["val"] = validation_split(splits["train"])
    return Task(key, classes, splits, source=f"{name} below {root}")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _check_classes(name: str, found: Sequence[str], classes: Sequence[str]) -> None:
    if len(found) != len(classes):
        raise DataError(f"{name}: must have {len(classes)} classes, got {len(found)}")
    if name.lower() in ("cars", "eurosat"):  # CLIP words these differently; their order is the same
        return
    for label, (on_disk, expected) in enumerate(zip(found, classes, strict=True)):
        if on_disk.replace("_", " ").replace("/", " ") != expected:
            raise DataError(f"{name}: class {label} must be {expected!r}, got {on_disk!r}")


def _map_style(dataset: Any, num_classes: int) -> DecodedSplit:
    """A split of a torchvision dataset whose items are pairs of a picture and a label."""
    return DecodedSplit(dataset.__getitem__, len(dataset), num_classes)


def _read_mnist(root: Path, download: bool) -> _Splits:
    from torchvision import datasets

    return {
        split: _map_style(datasets.MNIST(str(root), train=split == "train", download=download), 10)
        for split in ("train", "test")
    }, None


def _read_svhn(root: Path, download: bool) -> _Splits:
    from torchvision import datasets

    folder = root / "svhn" if (root / "svhn").is_dir() or download else root
    return {
        split: _map_style(datasets.SVHN(str(folder), split=split, download=download), 10) for split in ("train", "test")
    }, None


def _read_gtsrb(root: Path, download: bool) -> _Splits:
    from torchvision import datasets

    return {
        split: _map_style(datasets.GTSRB(str(root), split=split, download=download), 43) for split in ("train", "test")
    }, None


def _read_cars(root: Path, download: bool) -> _Splits:
    from torchvision import datasets

    parts = {split: datasets.StanfordCars(str(root), split=split, download=download) for split in ("train", "test")}
    return {split: _map_style(part, 196) for split, part in parts.items()}, parts["train"].classes


def _read_dtd(root: Path, download: bool) -> _Splits:
    """Training is the official train1 and val1 together (3760 images), testing is test1 (1880)."""
    if download:
        from torchvision import datasets

        datasets.DTD(str(root), split="train", download=True)
    labels, images = root / "dtd" / "dtd" / "labels", root / "dtd" / "dtd" / "images"
    lines = {split: (labels / f"{split}1.txt").read_text().split() for split in ("train", "val", "test")}
    classes = class_folders(images)
    return {
        split: _listed(images, [(line.rpartition("/")[0], line) for line in chosen], classes)
        for split, chosen in (("train", lines["train"] + lines["val"]), ("test", lines["test"]))
    }, classes


def _listed(folder: Path, files: Sequence[tuple[str, str]], classes: Sequence[str]) -> DecodedSplit:
    """A split of pairs (class, file below `folder`), sorted by class, then by file."""
    places = {name: label for label, name in enumerate(classes)}
    unknown = next((name for name, _ in files if name not in places), None)
    if unknown is not None:
        raise DataError(f"{folder}: a list of pictures names the class {unknown!r}, which does not exist")
    ordered = sorted((places[name], file) for name, file in files)
    return file_split([folder / file for _, file in ordered], [label for label, _ in ordered], len(classes))


def _read_eurosat(root: Path, download: bool) -> _Splits:
    """The papers' own folders if they are there; else 270 images per class each for val and test.

    The papers drew those images without a seed, so only the sizes can be the same.
    """
    prepared = root / "EuroSAT_splits"
    if prepared.is_dir():
        classes = class_folders(prepared / "train")
        return {
            split: file_split(*list_pictures(prepared / split, classes), len(classes))
            for split in ("train", "val", "test")
        }, classes
    if download:
        from torchvision import datasets

        datasets.EuroSAT(str(root), download=True)
    folder = root / "eurosat" / "2750"
    classes = class_folders(folder)
    paths, labels = list_pictures(folder, classes)
    whole = file_split(paths, labels, len(classes))
    return {split: SubsetSplit(whole, chosen) for split, chosen in _deal_eurosat(labels).items()}, classes


def _deal_eurosat(labels: Sequence[int]) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(0)
    dealt: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in sorted(set(labels)):
        members = torch.tensor([index for index, other in enumerate(labels) if other == label])
        order = members[torch.randperm(len(members), generator=generator)].tolist()
        held_out = min(_EUROSAT_HELD_OUT, len(order) // 10)
        dealt["val"] += sorted(order[:held_out])
        dealt["test"] += sorted(order[held_out : 2 * held_out])
        dealt["train"] += sorted(order[2 * held_out :])
    return dealt


def _read_resisc45(root: Path, download: bool) -> _Splits:
    """The lists of "In-domain representation learning for remote sensing", val list left aside."""
    folder = root / "resisc45"
    if (folder / "train").is_dir():
        classes = class_folders(folder / "train")
        return {
            split: file_split(*list_pictures(folder / split, classes), len(classes)) for split in ("train", "test")
        }, classes
    lists = {split: (folder / f"resisc45-{split}.txt").read_text().split() for split in ("train", "test")}
    classes = class_folders(folder / "NWPU-RESISC45")
    return {
        split: file_split(*list_pictures(folder / "NWPU-RESISC45", classes, keep=names), len(classes))
        for split, names in lists.items()
    }, classes


def _read_sun397(root: Path, download: bool) -> _Splits:
    """Partition 1 of the ten official ones: 50 training and 50 test images per class."""
    folder = root / "SUN397"
    if download:
        from torchvision import datasets

        datasets.SUN397(str(root), download=True)
        if not (folder / "Training_01.txt").is_file():
            datasets.utils.download_and_extract_archive(
                _SUN397_PARTITIONS, download_root=str(folder), md5=_SUN397_PARTITIONS_MD5
            )
    # Lines read "/a/abbey" and "/a/abbey/sun_....jpg"; the letter is a folder and not part of the name.
    classes = [line.strip()[3:] for line in (folder / "ClassName.txt").read_text().splitlines() if line.strip()]
    lists = {"train": "Training_01.txt", "test": "Testing_01.txt"}
    return {
        split: _listed(
            folder,
            [(line[3:].rpartition("/")[0], line[1:]) for line in (folder / file).read_text().split()],
            classes,
        )
        for split, file in lists.items()
    }, classes


_BY_HAND = ("cars", "resisc45")  # no host that torchvision could fetch them from

_READERS: dict[str, tuple[Callable[[Path, bool], _Splits], str]] = {
    "cars": (
        _read_cars,
        "stanford_cars/ with cars_train, cars_test, devkit and cars_test_annos_withlabels.mat",
    ),
    "dtd": (_read_dtd, "dtd/dtd/ with images and labels"),
    "eurosat": (_read_eurosat, "eurosat/2750/ or EuroSAT_splits/ with train, val and test"),
    "gtsrb": (_read_gtsrb, "gtsrb/ with GTSRB and GT-final_test.csv"),
    "mnist": (_read_mnist, "MNIST/raw/ with the four idx files"),
    "resisc45": (_read_resisc45, "resisc45/ with NWPU-RESISC45, resisc45-train.txt and resisc45-test.txt"),
    "sun397": (_read_sun397, "SUN397/ with the pictures, ClassName.txt, Training_01.txt and Testing_01.txt"),
    "svhn": (_read_svhn, "svhn/ with train_32x32.mat and test_32x32.mat"),
}
