"""Text tasks: files of lines, splits, batches of token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taskarith_fast.data import Example, Task, TextSplit, find_task, load_tsv, text_batches
from taskarith_fast.data.fingerprint import fingerprint
from taskarith_fast.errors import ArgumentError, DataError
from tests.data.helpers import array_split

LINES = ["split\tlabel\torigin\ttext"] + [
    f"{split}\t{label}\tx\t{label} number {i}"
    for split, count in (("train", 20), ("val", 2), ("test", 3))
    for i in range(count)
    for label in ("cat", "dog")
]


class Lengths:
    """A tokenizer whose ids are the lengths of the words."""

    def __call__(self, examples):
        rows = [[len(word) for word in example.text.split()] for example in examples]
        width = max(map(len, rows))
        return {"input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows])}

    def check(self, examples):
        return 0


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_of_lines_is_a_task(tmp_path) -> None:
    task = find_task(str(write(tmp_path / "pets.tsv", LINES)))
    assert (task.name, task.classes) == ("pets", ("cat", "dog"))
    assert [len(task.splits[s]) for s in ("train", "val", "test")] == [40, 4, 6]
    examples, labels = task.splits["test"].get([0, 3])
    assert examples == [Example("cat number 0"), Example("dog number 1")]
    assert labels.tolist() == [0, 1]


def test_without_validation_lines_some_are_carved_out_of_training(tmp_path) -> None:
    task = load_tsv(write(tmp_path / "pets.tsv", [line for line in LINES if not line.startswith("val")]))
    assert [len(task.splits[s]) for s in ("train", "val", "test")] == [36, 4, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: ["split\ttext", *lines[1:]], "must name the columns split, label and text, but lacks label"),
        (lambda lines: [*lines, "train\tcat"], r"line 52: must have 4 columns, got 2"),
        (lambda lines: [*lines, "dev\tcat\tx\tone"], "split must be train, val or test, got 'dev'"),
        (lambda lines: [*lines, "test\tcow\tx\tone"], "label 'cow' of test is not one of the 2 training labels"),
        (lambda lines: lines[:41], "has no sample in its test split"),
        (lambda lines: [], "line 1 must name the columns"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line(tmp_path, change, message) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_tsv(write(tmp_path / "pets.tsv", change(LINES)))
    assert "\n" not in str(error.value)


def test_missing_and_binary_files_are_named(tmp_path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_tsv(tmp_path / "none.tsv")
    (tmp_path / "bad.tsv").write_bytes(b"split\xff\xfe")
    with pytest.raises(DataError, match="not a readable text file"):
        load_tsv(tmp_path / "bad.tsv")


def test_labels_must_fit_texts_classes_and_choices() -> None:
    with pytest.raises(DataError, match="one for each of the 2 texts, got 1"):
        TextSplit(["a", "b"], [0])
    with pytest.raises(DataError, match=r"must lie in \[0, 2\)"):
        TextSplit(["a", "b"], [0, 2], num_classes=2)
    with pytest.raises(DataError, match="one of the 2 choices of text 1, got 2"):
        TextSplit([Example("a", ("x", "y", "z")), Example("b", ("x", "y"))], [2, 2])


def test_batches_hold_every_text_once_padded_to_the_longest() -> None:
    split = TextSplit(["a", "a bb ccc", "a bb", "a"], [0, 1, 2, 3])
    plain = list(text_batches(split, tokenizer=Lengths(), batch_size=2))
    assert plain[0][0]["input_ids"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert [labels.tolist() for _, labels in plain] == [[0, 1], [2, 3]]
    again = [list(text_batches(split, tokenizer=Lengths(), batch_size=3, shuffle=True, seed=s)) for s in (1, 1)]
    assert [y.tolist() for _, y in again[0]] == [y.tolist() for _, y in again[1]]
    assert sorted(torch.cat([y for _, y in again[0]]).tolist()) == [0, 1, 2, 3]


def test_skipped_and_divided_batches_are_those_of_the_whole_pass() -> None:
    split = TextSplit([f"text {i}" for i in range(10)], list(range(10)))
    whole = [y.tolist() for _, y in text_batches(split, tokenizer=Lengths(), batch_size=4, shuffle=True)]
    late = [y.tolist() for _, y in text_batches(split, tokenizer=Lengths(), batch_size=4, shuffle=True, skip=1)]
    halves = [
        [y.tolist() for _, y in text_batches(split, tokenizer=Lengths(), batch_size=4, shuffle=True, part=(i, 2))]
        for i in range(2)
    ]
    assert late == whole[1:]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_images_are_refused_before_the_first_batch() -> None:
    with pytest.raises(DataError, match="must be one of texts"):
        text_batches(array_split(3), tokenizer=Lengths(), batch_size=2)
    with pytest.raises(ArgumentError, match="batch_size must be at least 1"):
        text_batches(TextSplit(["a"], [0]), tokenizer=Lengths(), batch_size=0)


def test_an_unknown_task_lists_the_shipped_ones() -> None:
    with pytest.raises(ArgumentError, match=r"among fashion, .* nouns, .*, got 'imagenet'"):
        find_task("imagenet")


def test_fingerprints_see_texts_choices_and_labels() -> None:
    def task(*examples, labels=(0, 1)) -> Task:
        split = TextSplit(examples, labels)
        return Task("t", ("x", "y"), {"train": split, "val": split, "test": split})

    tasks = [task("a", "b"), task("a", "c"), task("a", "b", labels=(1, 1)), task("a", Example("b", ("x", "y")))]
    assert fingerprint(tasks[0]) == fingerprint(task("a", "b"))
    assert len({fingerprint(each) for each in tasks}) == 4
