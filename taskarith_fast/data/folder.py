"""Tasks in folders of pictures: one folder per split, in it one folder per class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from taskarith_fast.data.task import SPLITS, DecodedSplit, Split, Task, validation_split
from taskarith_fast.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})


def load_folder(
    path: str | Path, *, name: str | None = None, licence: str = "unknown", source: str | None = None
) -> Task:
    """Load a task from folders `train/CLASS`, `test/CLASS` and, if there, `val/CLASS` of pictures.

    Labels follow the sorted names of the folders in `train`; `val` and `test` may lack a class but may not
    add one. Without `val` the validation split is carved out of `train` (see `validation_split`). Pictures
    are opened when they are asked for.

    Args:
        path: The folder that holds the splits.
        name: Name of the task; the folder's name if not given.
        licence: SPDX identifier of the images' licence.
        source: Where the images come from; the path if not given.

    Raises:
        DataError: If a split or its pictures are missing, or `val` or `test` has a class that `train` lacks.
    """
    root = Path(path)
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise DataError(f"{root}: no folder {split}; expected train/CLASS/*.png, test/CLASS/*.png, maybe val")
    classes = class_folders(root / "train")
    splits: dict[str, Split] = {
        split: file_split(*list_pictures(root / split, classes), len(classes))
        for split in SPLITS
        if (root / split).is_dir()
    }
    if "val" not in splits:
        splits["train"], splits["val"] = validation_split(splits["train"])
    return Task(name or root.resolve().name, classes, splits, licence, source if source is not None else str(root))


def class_folders(folder: Path) -> tuple[str, ...]:
    """The sorted names of the folders in `folder`; DataError if there are none."""
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise DataError(f"{folder}: no class folders; expected one folder of pictures per class")
    return classes


def list_pictures(
    folder: Path, classes: Sequence[str], keep: Iterable[str] | None = None
) -> tuple[list[Path], list[int]]:
    """List the pictures of a folder of class folders, in sorted order, with their labels.

    Args:
        folder: Holds one folder per class.
        classes: Class names; a folder's label is its place here.
        keep: If given, only pictures of these file names.

    Raises:
        DataError: If a folder is not among the classes, or there is no picture.
    """
    kept = None if keep is None else frozenset(keep)
    paths: list[Path] = []
    labels: list[int] = []
    for name in class_folders(folder):
        if name not in classes:
            raise DataError(f"{folder}: folder {name} is not one of the {len(classes)} training classes")
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in EXTENSIONS and (kept is None or path.name in kept):
                paths.append(path)
                labels.append(classes.index(name))
    if not paths:
        raise DataError(f"{folder}: no pictures in its class folders; endings are {' '.join(sorted(EXTENSIONS))}")
    return paths, labels


def file_split(paths: Sequence[Path], labels: Sequence[int], num_classes: int) -> DecodedSplit:
    """A split of picture files with known labels."""

    def fetch(index: int) -> tuple[Image.Image, int]:
        try:
            with Image.open(paths[index]) as picture:
                return picture.convert("RGB"), labels[index]
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{paths[index]}: not a readable picture ({reason})") from None

    return DecodedSplit(fetch, len(paths), num_classes)
