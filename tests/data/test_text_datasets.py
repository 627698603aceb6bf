"""The paper's language datasets from local files in their layouts, and templates."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from taskarith_fast.data import TEMPLATES, Template, load_text_dataset
from taskarith_fast.data.text_datasets import TEXT_DATASETS
from taskarith_fast.errors import ArgumentError, BackendError, DataError


def lettered(n: int) -> dict:
    return {"text": [f"answer {n} {letter}" for letter in "abcd"], "label": list("ABCD")}


def story(n: int) -> dict:
    return {f"input_sentence_{i}": f"Part {i}." for i in range(1, 5)} | {
        "sentence_quiz1": f"It went well, {n}.", "sentence_quiz2": "It did not.", "answer_right_ending": 1 + n % 2,
    }  # fmt: skip


# A row of each dataset, as the hub has it, by the number of the row.
ROWS = {
    "qasc": lambda n: {"id": f"q{n}", "question": f"what is {n}?", "choices": lettered(n), "answerKey": "ABCD"[n % 4],
                       "fact1": "a fact", "fact2": "another", "combinedfact": "both", "formatted_question": "x"},
    "wikiqa": lambda n: {"question_id": f"Q{n}", "question": f"who is {n}?", "document_title": "Page",
                         "answer": f"sentence {n}", "label": n % 2},
    "quartz": lambda n: {"id": f"z{n}", "question": f"more or less, {n}?", "choices": {"text": ["more", "less"],
                         "label": ["A", "B"]}, "answerKey": "AB"[n % 2], "para": "a passage", "para_id": "p"},
    "paws": lambda n: {"id": n, "sentence1": f"one {n}", "sentence2": f"{n} one", "label": n % 2},
    "story_cloze": story,
    "winogrande": lambda n: {"sentence": f"The _ is {n}.", "option1": "cup", "option2": "box",
                             "answer": str(1 + n % 2)},
    "wsc": lambda n: {"text": f"Ann saw Eve and she ran {n}.", "span1_index": 0, "span2_index": 4, "span1_text": "Ann",
                      "span2_text": "she", "idx": n, "label": n % 2},
    "rte": lambda n: {"premise": f"It is {n}.", "hypothesis": f"{n} it is.", "idx": n, "label": n % 2},
}  # fmt: skip

CLASSES = {"qasc": 4, "quartz": 2, "story_cloze": 2, "winogrande": 2}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(root: Path, name: str, count: int = 30, **splits: int) -> Path:
    for split, n in ({"train": count, "validation": 20, "test": 6} | splits).items():
        rows = [ROWS[name](i) for i in range(n)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def right(examples, labels) -> list[str]:
    return [e.choices[y] for e, y in zip(examples, labels, strict=True)]


@pytest.mark.parametrize("name", TEXT_DATASETS)
@pytest.mark.parametrize("template", [0, 1])
def test_every_dataset_becomes_texts_with_choices(name, template, tmp_path) -> None:
    task = load_text_dataset(name, write(tmp_path, name), template=template)
    assert len(task.classes) == CLASSES.get(name, 2)
    examples, labels = task.splits["test"].get([0, 1, 2, 3])
    assert [len(example.choices) for example in examples] == [len(task.classes)] * 4
    assert labels.tolist() == [n % len(task.classes) for n in range(4)]
    assert all("{" not in example.text for example in examples)


def test_right_answers_are_those_of_the_rows(tmp_path) -> None:
    (tmp_path / "q").mkdir()
    examples, labels = load_text_dataset("QASC", write(tmp_path / "q", "qasc")).splits["test"].get(range(8))
    assert [e.choices[y] for e, y in zip(examples, labels, strict=True)] == [
        f"answer {n} {'abcd'[n % 4]}" for n in range(8)
    ]
    examples, labels = load_text_dataset("story_cloze", write(tmp_path, "story_cloze")).splits["test"].get([0, 1])
    assert [e.choices[y] for e, y in zip(examples, labels, strict=True)] == ["It went well, 0.", "It did not."]
    assert examples[0].text.startswith("Part 1. Part 2. Part 3. Part 4.")


def test_hidden_test_labels_are_not_used(tmp_path) -> None:
    task = load_text_dataset("rte", write(tmp_path, "rte"))
    assert [len(task.splits[s]) for s in ("train", "val", "test")] == [27, 3, 20]
    task = load_text_dataset("paws", write(tmp_path, "paws"))
    assert [len(task.splits[s]) for s in ("train", "val", "test")] == [30, 20, 6]


def test_saved_and_parquet_folders_are_read_too(tmp_path) -> None:
    import datasets

    write(tmp_path, "wsc")
    tables = {s: datasets.Dataset.from_json(str(tmp_path / f"{s}.jsonl")) for s in ("train", "validation")}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    for split, table in tables.items():
        table.to_parquet(str(tmp_path / "files" / f"{split}-00000-of-00001.parquet"))
    saved, files = (load_text_dataset("wsc", tmp_path / kind).splits["test"] for kind in ("saved", "files"))
    assert saved.get(range(20))[0] == files.get(range(20))[0]


def test_own_templates_are_checked_against_the_data(tmp_path) -> None:
    own = Template("mine", "{premise} So: {hypothesis}", choices=("right", "wrong"))
    task = load_text_dataset("rte", write(tmp_path, "rte"), template=own)
    assert task.classes == ("right", "wrong")
    wrong = Template("mine", "{premiss} So: {hypothesis}", choices=("right", "wrong"))
    with pytest.raises(
        ArgumentError, match=r"template 'mine' needs the fields premiss, hypothesis, but .* lacks premiss"
    ):
        load_text_dataset("rte", tmp_path, template=wrong)
    with pytest.raises(ArgumentError, match="template must be from 0 to 1 for rte, got 2"):
        load_text_dataset("rte", tmp_path, template=2)


def test_an_answer_outside_the_choices_is_named(tmp_path) -> None:
    row = ROWS["quartz"](0) | {"answerKey": "C"}
    (write(tmp_path, "quartz") / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="row 'z0': the answer must be one of 'A', 'B', got 'C'"):
        load_text_dataset("quartz", tmp_path)
    (write(tmp_path, "winogrande") / "validation.jsonl").write_text(json.dumps(ROWS["winogrande"](0) | {"answer": ""}))
    with pytest.raises(DataError, match="answer: the answer must be one of '1', '2', got ''"):
        load_text_dataset("winogrande", tmp_path)


def test_missing_data_is_one_line(tmp_path) -> None:
    for call, error, message in (
        (lambda: load_text_dataset("squad"), ArgumentError, "name must be one of qasc, .*, got 'squad'"),
        (lambda: load_text_dataset("rte", tmp_path), DataError, "no files train"),
        (lambda: load_text_dataset("rte", write(tmp_path, "paws")), DataError, "rows must have hypothesis"),
        (lambda: load_text_dataset("paws"), DataError, "is not to be had .* give its folder as root, or pass download"),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(DataError, match="must have the splits train, validation, test, but lacks validation"):
        load_text_dataset("paws", tmp_path)


def test_without_the_library_a_hint_is_given(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BackendError, match="pip install datasets"):
        load_text_dataset("rte")


@pytest.mark.parametrize("prompt", ["{", "{0}", "{a.b}", "{a[0]}", "{}"])
def test_prompts_are_plain_format_strings(prompt) -> None:
    with pytest.raises(ArgumentError, match="template 'bad'"):
        Template("bad", prompt)


def test_a_row_with_one_choice_is_refused() -> None:
    with pytest.raises(DataError, match=r"at least two choices, got \['only'\]"):
        Template("t", "{q}").render({"q": "why?", "choices": ["only"]})


def test_all_templates_differ_within_a_dataset() -> None:
    assert set(TEMPLATES) == set(TEXT_DATASETS)
    assert all(len({template.prompt for template in own}) == len(own) >= 2 for own in TEMPLATES.values())
