"""The eight language datasets of TaLoS (ICLR 2025), through Hugging Face `datasets`, with templates.

QASC, WikiQA, QuaRTz, PAWS, Story Cloze, Winogrande and WSC, and RTE as the control of negation. Rows are turned into
texts with answer choices, which a sequence-to-sequence model ranks by log-probability. Where the test labels are not
public, the validation rows are the test split, and a validation split is carved out of the training rows by
`validation_split`; Story Cloze, which has no training rows, trains on its validation rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskarith_fast.data.task import Split, Task, validation_split
from taskarith_fast.data.templates import TEMPLATES, Row, Template, place_of
from taskarith_fast.data.text import TextSplit
from taskarith_fast.errors import ArgumentError, BackendError, DataError

_READERS = {".parquet": "from_parquet", ".jsonl": "from_json", ".json": "from_json", ".csv": "from_csv"}


@dataclass(frozen=True)
class _Source:
    repository: str
    config: str | None
    columns: frozenset[str]
    label: Callable[[Row], int]
    splits: Mapping[str, str]
    """Ours -> theirs; without "val" it is carved out of training."""
    prepare: Callable[[Row], dict[str, Any]] = lambda row: {}
    """Fields that the templates use and the rows lack."""


def _lettered(row: Row) -> int:
    """The place of a choice named by its letter."""
    return place_of(row["answerKey"], row["choices"]["label"], f"row {row['id']!r}")


def _numbered(field: str) -> Callable[[Row], int]:
    """The place of one of two choices, numbered from 1."""
    return lambda row: place_of(str(row[field]), ("1", "2"), field)


def _classed(row: Row) -> int:
    """A label of two classes, 0 and 1."""
    return place_of(int(row["label"]), (0, 1), "label")


def _listed(row: Row) -> dict[str, Any]:
    return {"choices": row["choices"]["text"]}


def _story(row: Row) -> dict[str, Any]:
    sentences = [row[f"input_sentence_{i}"] for i in range(1, 5)]
    return {"story": " ".join(sentences), "choices": [row["sentence_quiz1"], row["sentence_quiz2"]]}


_ALL = {"train": "train", "val": "validation", "test": "test"}
_NO_TEST = {"train": "train", "test": "validation"}
_QUESTION = frozenset({"id", "question", "choices", "answerKey"})

_SOURCES: dict[str, _Source] = {
    "qasc": _Source("allenai/qasc", None, _QUESTION | {"fact1", "fact2"}, _lettered, _NO_TEST, _listed),
    "wikiqa": _Source(
        "microsoft/wiki_qa", None, frozenset({"question", "answer", "document_title", "label"}), _classed, _ALL
    ),
    "quartz": _Source("allenai/quartz", None, _QUESTION | {"para"}, _lettered, _ALL, _listed),
    "paws": _Source(
        "google-research-datasets/paws", "labeled_final", frozenset({"sentence1", "sentence2", "label"}), _classed, _ALL
    ),
    "story_cloze": _Source(
        "LSDSem/story_cloze", "2016",
        frozenset({*(f"input_sentence_{i}" for i in range(1, 5)), "sentence_quiz1", "sentence_quiz2",
                   "answer_right_ending"}),
        _numbered("answer_right_ending"), {"train": "validation", "test": "test"}, _story,
    ),
    "winogrande": _Source(
        "allenai/winogrande", "winogrande_xl", frozenset({"sentence", "option1", "option2", "answer"}),
        _numbered("answer"), _NO_TEST, lambda row: {"choices": [row["option1"], row["option2"]]},
    ),
    "wsc": _Source("aps/super_glue", "wsc.fixed", frozenset({"text", "span1_text", "span2_text", "label"}), _classed,
                   _NO_TEST),
    "rte": _Source("aps/super_glue", "rte", frozenset({"premise", "hypothesis", "label"}), _classed, _NO_TEST),
}  # fmt: skip

TEXT_DATASETS = tuple(_SOURCES)


def load_text_dataset(
    name: str, root: str | Path | None = None, *, template: int | Template = 0, download: bool = False
) -> Task:
    """Load one of the eight datasets as texts with answer choices.

    Args:
        name: "qasc", "wikiqa", "quartz", "paws", "story_cloze", "winogrande", "wsc" or "rte".
        root: A folder with the dataset: one that `Dataset.save_to_disk` wrote, or files train.*, validation.* and
            test.* of parquet, JSON lines or CSV. None takes the cache of `datasets`.
        template: One of `TEMPLATES[name]` by its number, or any.
        download: Let `datasets` fetch what is missing; without a root.

    Returns:
        The task; its classes are the answers where they are the same for all rows, else their places.

    Raises:
        ArgumentError: If there is no such dataset or template, or the template needs fields that the data lacks.
        BackendError: If `datasets` is not installed.
        DataError: If the data is missing or incomplete, or an answer is not among the choices.
    """
    key = name.lower()
    if key not in _SOURCES:
        raise ArgumentError(f"name must be one of {', '.join(_SOURCES)}, got {name!r}")
    source, chosen = _SOURCES[key], _template(key, template)
    try:
        import datasets
    except ImportError:
        raise BackendError("datasets is not installed; run `pip install datasets`, or taskarith_fast[text]") from None
    tables = _open(datasets, key, source, root, download)
    for theirs in source.splits.values():
        if theirs not in tables:
            raise DataError(f"{key}: must have the splits {', '.join(source.splits.values())}, but lacks {theirs}")
        _check_columns(key, source, chosen, tables[theirs])
    splits: dict[str, Split] = {ours: _split(source, chosen, tables[theirs]) for ours, theirs in source.splits.items()}
    classes = chosen.choices if chosen.choices else _places(splits)
    if "val" not in splits:
        splits["train"], splits["val"] = validation_split(splits["train"])
    return Task(key, classes, splits, source=f"{source.repository}, template {chosen.name!r}")


def _template(key: str, template: int | Template) -> Template:
    if isinstance(template, Template):
        return template
    if not 0 <= template < len(TEMPLATES[key]):
        raise ArgumentError(f"template must be from 0 to {len(TEMPLATES[key]) - 1} for {key}, got {template}")
    return TEMPLATES[key][template]


def _check_columns(key: str, source: _Source, template: Template, table: Any) -> None:
    if missing := sorted(source.columns - set(table.column_names)):
        raise DataError(f"{key}: rows must have {', '.join(sorted(source.columns))}, but lack {', '.join(missing)}")
    if not len(table):
        raise DataError(f"{key}: a split has no rows")
    template.check({*table.column_names, *source.prepare(table[0])})


def _split(source: _Source, template: Template, table: Any) -> TextSplit:
    return TextSplit(
        [template.render(row | source.prepare(row)) for row in table], [source.label(row) for row in table]
    )


def _places(splits: Mapping[str, Split]) -> tuple[str, ...]:
    most = max(len(example.choices) for split in splits.values() for example in split.get(range(len(split)))[0])
    return tuple(f"choice {place + 1}" for place in range(most))


def _open(datasets: Any, key: str, source: _Source, root: str | Path | None, download: bool) -> Any:
    """The tables by their split's name."""
    if root is not None:
        return _from_folder(datasets, key, Path(root))
    config = datasets.DownloadConfig(local_files_only=not download)
    try:
        return datasets.load_dataset(source.repository, source.config, download_config=config)
    except Exception as error:  # datasets raises errors of many libraries
        hint = f"give its folder as root{'' if download else ', or pass download=True'}"
        raise DataError(f"{key}: {source.repository} is not to be had ({_first_line(error)}); {hint}") from None


def _from_folder(datasets: Any, key: str, root: Path) -> Any:
    try:
        if (root / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(root))
        files = {
            split: path
            for split in ("train", "validation", "test")
            for path in sorted(root.glob(f"{split}*"))
            if path.suffix in _READERS
        }
        found = {split: getattr(datasets.Dataset, _READERS[path.suffix])(str(path)) for split, path in files.items()}
    except Exception as error:  # datasets raises errors of many libraries
        raise DataError(f"{key}: {root} cannot be read ({_first_line(error)})") from None
    if not found:
        raise DataError(f"{key}: no files train.*, validation.* or test.* (parquet, jsonl or csv) in {root}")
    return found


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
