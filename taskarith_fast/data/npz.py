"""Tasks in one .npz file: the format of the shipped pack and the simplest way to bring one's own."""

from __future__ import annotations

import io
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

import numpy as np

from taskarith_fast.data.task import SPLITS, ArraySplit, Split, Task, validation_split
from taskarith_fast.errors import DataError

_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
)


def load_npz(path: str | Path, *, name: str | None = None, licence: str = "unknown", source: str | None = None) -> Task:
    """Load a task from an .npz file.

    The file holds `train_images`, `train_labels`, `test_images`, `test_labels`, `classes` (strings), and
    optionally `val_images` and `val_labels`; without these the validation split is carved out of the training
    split (see `validation_split`). Images are uint8 [N, H, W] or [N, H, W, 3], labels integers [N]. Pickled
    arrays are refused.

    Args:
        path: The file.
        name: Name of the task; the file's stem if not given.
        licence: SPDX identifier of the images' licence.
        source: Where the images come from; the path if not given.

    Raises:
        DataError: If the file is missing or damaged, lacks an array, or has one of another shape or type.
    """
    path = Path(path)
    arrays = _read(path)
    classes = _classes(arrays, path)
    splits: dict[str, Split] = {}
    for split in SPLITS:
        if split == "val" and "val_images" not in arrays:
            continue
        try:
            splits[split] = ArraySplit(
                _array(arrays, f"{split}_images", path), _array(arrays, f"{split}_labels", path), len(classes)
            )
        except DataError as error:
            raise DataError(f"{path}, {split} split: {error}") from None
    if "val" not in splits:
        splits["train"], splits["val"] = validation_split(splits["train"])
    return Task(name or path.stem, classes, splits, licence, source if source is not None else str(path))


def save_npz(path: str | Path, classes: list[str], **arrays: np.ndarray) -> None:
    """Write a task file that `load_npz` reads; `arrays` are train_images, train_labels, test_images, ..."""
    np.savez_compressed(path, classes=np.array(classes), **arrays)  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz with train_images, train_labels, test_images, ...")
    try:
        with zipfile.ZipFile(path) as archive:
            # np.load stops reading before the end of a member, and so never compares its checksum.
            return {
                name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in archive.namelist()
            }
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable .npz of plain arrays ({reason})") from None


def _array(arrays: dict[str, np.ndarray], key: str, path: Path) -> np.ndarray:
    if key not in arrays:
        raise DataError(f"lacks the array {key}; it has {', '.join(sorted(arrays))}")
    return arrays[key]


def _classes(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    classes = arrays.get("classes")
    if classes is None or classes.ndim != 1 or classes.dtype.kind != "U" or classes.size < 2:
        got = "none" if classes is None else f"{classes.dtype} {list(classes.shape)}"
        raise DataError(f"{path}: classes must be an array of at least two strings, got {got}")
    return tuple(str(name) for name in classes)
