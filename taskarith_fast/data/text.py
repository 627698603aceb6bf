"""Tasks of texts: splits in memory, and files of tab-separated lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from taskarith_fast.data.task import SPLITS, Split, Task, check_labels, validation_split
from taskarith_fast.errors import DataError

_COLUMNS = {"split", "label", "text"}


class Example(NamedTuple):
    """What is to be classified: a text, and the answers it may have where they are not the task's classes."""

    text: str
    choices: tuple[str, ...] = ()


class TextSplit:
    """Labelled texts in memory.

    Args:
        examples: Texts, or examples with choices.
        labels: Integers, one a text; with choices, the place of the right one.
        num_classes: If given, labels are checked against it.

    Raises:
        DataError: If the counts differ or a label is out of range.
    """

    def __init__(
        self, examples: Sequence[str | Example], labels: Sequence[int] | np.ndarray, num_classes: int | None = None
    ) -> None:
        values = np.asarray(labels, dtype=np.int64).reshape(-1)
        if len(values) != len(examples):
            raise DataError(f"labels must be one for each of the {len(examples)} texts, got {len(values)}")
        self._examples = [Example(e) if isinstance(e, str) else e for e in examples]
        if num_classes is not None:
            check_labels(values, num_classes, "labels")
        for place, (example, label) in enumerate(zip(self._examples, values, strict=True)):
            if example.choices and not 0 <= label < len(example.choices):
                raise DataError(
                    f"labels must name one of the {len(example.choices)} choices of text {place}, got {label}"
                )
        self._labels = torch.from_numpy(values)

    def __len__(self) -> int:
        return len(self._examples)

    def get(self, indices: Sequence[int] | Tensor) -> tuple[list[Example], Tensor]:
        """Return the examples at `indices` and their labels, int64 [B]."""
        places = torch.as_tensor(indices, dtype=torch.int64)
        return [self._examples[place] for place in places.tolist()], self._labels[places]


def load_tsv(path: str | Path, *, name: str | None = None, licence: str = "unknown", source: str | None = None) -> Task:
    """Load a task of texts from a file of tab-separated lines.

    The first line names the columns; `split` (train, val or test), `label` (a class name) and `text` must be among
    them, others are ignored. Classes are the sorted labels of the training lines. Without lines for val the
    validation split is carved out of the training split (see `validation_split`).

    Args:
        path: The file, in UTF-8.
        name: Name of the task; the file's stem if not given.
        licence: SPDX identifier of the texts' licence.
        source: Where the texts come from; the path if not given.

    Raises:
        DataError: If the file is missing or not text, lacks a column or a split, or a line has another number of
            columns, an unknown split, or a label that training lacks.
    """
    path = Path(path)
    lines = _read_lines(path)
    columns = lines[0].split("\t")
    if missing := sorted(_COLUMNS - set(columns)):
        raise DataError(f"{path}: line 1 must name the columns split, label and text, but lacks {', '.join(missing)}")
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for number, line in enumerate(lines[1:], start=2):
        fields = dict(zip(columns, line.split("\t"), strict=False))
        if line.count("\t") != len(columns) - 1:
            raise DataError(f"{path}, line {number}: must have {len(columns)} columns, got {line.count(chr(9)) + 1}")
        if fields["split"] not in found:
            raise DataError(f"{path}, line {number}: split must be train, val or test, got {fields['split']!r}")
        found[fields["split"]].append((fields["text"], fields["label"]))
    classes = tuple(sorted({label for _, label in found["train"]}))
    splits: dict[str, Split] = {
        split: _split(path, split, pairs, classes) for split, pairs in found.items() if pairs or split != "val"
    }
    if "val" not in splits:
        splits["train"], splits["val"] = validation_split(splits["train"])
    return Task(name or path.stem, classes, splits, licence, source if source is not None else str(path))


def _split(path: Path, split: str, pairs: list[tuple[str, str]], classes: tuple[str, ...]) -> TextSplit:
    places = {label: place for place, label in enumerate(classes)}
    unknown = next((label for _, label in pairs if label not in places), None)
    if unknown is not None:
        raise DataError(f"{path}: label {unknown!r} of {split} is not one of the {len(classes)} training labels")
    return TextSplit([text for text, _ in pairs], [places[label] for _, label in pairs])


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected lines of split, label and text, separated by tabs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file ({str(error).splitlines()[0]})") from None
    return [line.removesuffix("\r") for line in lines if line.strip()] or [""]
