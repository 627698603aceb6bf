"""The shipped pack of texts: what the manifest says, no leaks, licences."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from taskarith_fast.data import load_text_tasks
from taskarith_fast.data.pack import TEXT_PACK_ROOT
from tests.data.helpers import all_labels

NAMES = ["nouns", "verbs", "verb-examples", "word-classes", "sections", "uses", "contents"]


def rows(name: str) -> list[dict[str, str]]:
    with (TEXT_PACK_ROOT / f"{name}.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall("[a-z0-9]+", text.lower()))


@pytest.fixture(scope="module")
def tasks():
    return load_text_tasks()


def test_the_pack_has_its_tasks_and_stays_small(tasks) -> None:
    assert list(tasks) == NAMES
    assert len(tasks["nouns"].classes) == 26 and len(tasks["verbs"].classes) == 15
    assert sum(path.stat().st_size for path in TEXT_PACK_ROOT.rglob("*")) < 1e6


@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_texts_of_every_class(tasks, name) -> None:
    task = tasks[name]
    for split, least in (("train", 800), ("val", 150), ("test", 300)):
        counts = np.bincount(all_labels(task.splits[split]), minlength=len(task.classes))
        assert counts.min() > 0 and counts.sum() >= least


@pytest.mark.parametrize("name", NAMES)
def test_no_text_has_a_near_copy_in_another_split(name) -> None:
    by_split: dict[str, list[frozenset[str]]] = {"train": [], "val": [], "test": []}
    for row in rows(name):
        by_split[row["split"]].append(words(row["text"]))
    for earlier, later in (("test", "val"), ("test", "train"), ("val", "train")):
        nearest = max(len(a & b) / len(a | b) for a in by_split[earlier] for b in by_split[later])
        assert nearest < 0.6


def test_no_synset_and_no_package_is_in_two_splits_of_any_tasks() -> None:
    place: dict[str, str] = {}
    for name in NAMES:
        for row in rows(name):
            assert place.setdefault(row["origin"], row["split"]) == row["split"], row["origin"]


def test_licences_are_beside_the_texts(tasks) -> None:
    assert {task.licence for task in tasks.values()} == {"LicenseRef-WordNet-3.0", "LicenseRef-Debian-main"}
    assert "Permission to use, copy, modify and distribute" in (TEXT_PACK_ROOT / "LICENSES/wordnet.txt").read_text()
    assert "Debian Free Software Guidelines" in (TEXT_PACK_ROOT / "LICENSES/debian.txt").read_text()
