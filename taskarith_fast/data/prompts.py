"""Class names and prompt templates of the eight datasets of the task-arithmetic papers, for zero-shot heads.

Names and templates are those published with CLIP (openai/CLIP, data/prompts.md, MIT License), in the label
order of the datasets as torchvision and ImageFolder number them: EuroSAT's are in the order of its folder
names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from taskarith_fast.errors import ArgumentError

DATASETS = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")


@dataclass(frozen=True)
class Prompts:
    """What a zero-shot head is built from: class names, and templates in which "{}" stands for a name."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]


def load_prompts(name: str) -> Prompts:
    """Return class names and templates of one of the eight datasets.

    >>> load_prompts("DTD").templates[0].format(load_prompts("DTD").classes[0])
    'a photo of a banded texture.'

    Raises:
        ArgumentError: If `name`, in upper or lower case, is not one of `DATASETS`.
    """
    key = name.lower()
    if key not in DATASETS:
        raise ArgumentError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")
    return _table()[key]


@cache
def _table() -> dict[str, Prompts]:
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    return {
        name: Prompts(tuple(entry["classes"]), tuple(entry["templates"])) for name, entry in json.loads(text).items()
    }
