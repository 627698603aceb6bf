"""From rows to a table: accuracies with their errors, normalised by the models that were fine-tuned on one task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import DataError
from taskarith_fast.loops import statistics
from taskarith_fast.loops.sweep.execute import correct_of
from taskarith_fast.loops.sweep.store import Row
from taskarith_fast.loops.sweep.worker import images_of
from taskarith_fast.merging.methods import METHODS

Record = dict[str, Any]

CHOICE = ("method", "tasks", "seed", "recipe")
"""What points are compared within: the best of each is a line of the summary."""


def references_of(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Model and task -> which images the fine-tuned model classifies correctly, [N]."""
    singles = [row for row in rows if row.kind == "single" and row.state == "done"]
    return {_reference(row, 0): _correct(row)[row.labels["tasks"][0]] for row in singles}


def records_of(rows: Sequence[Row]) -> list[Record]:
    """One flat record a row: what it is, what it found, what it cost.

    Returns:
        Records with the columns key, kind, state, method, tasks, seed, recipe, every parameter by its name, share,
        accuracy of each task, mean and normalized with their standard errors (fractions of one), seconds,
        arithmetic_seconds, error. A column that does not concern a row is None.
    """
    references = references_of(rows)
    records = [_record(row, references) for row in rows]
    columns = dict.fromkeys(name for record in records for name in record)
    last = ("share", "mean", "mean_stderr", "normalized", "normalized_stderr", "seconds", "arithmetic_seconds", "error")
    order = [name for name in columns if name not in last] + [name for name in last if name in columns]
    return [{name: record.get(name) for name in order} for record in records]


def score_of(row: Row, references: Mapping[str, Tensor], share: float = 1.0) -> float | None:
    """What is maximised, on the first images: normalised accuracy where the references are there, else the mean."""
    if row.state != "done" or row.share < share:
        return None
    correct = {task: found[: images_of(share / row.share, len(found))] for task, found in _correct(row).items()}
    mean, normalized = _means(row, correct, references)
    return (normalized or mean).value


def best_of(records: Sequence[Record]) -> list[Record]:
    """Of the merges of each method, set of tasks, seed and recipe, judged on all images, the best; of equals the first
    in the order of the parameters."""
    merges = [r for r in records if r["kind"] == "merge" and r["state"] == "done" and r["share"] == 1.0]
    best: dict[str, Record] = {}
    for record in sorted(merges, key=lambda r: json.dumps([v for n, v in r.items() if n != "key"], default=str)):
        group = json.dumps([record[name] for name in CHOICE])
        if group not in best or _score(record) > _score(best[group]):
            best[group] = record
    return sorted(best.values(), key=lambda record: -_score(record))


def settings_of(record: Record) -> str:
    """The parameters of a merge that are not its method's defaults, and its scale."""
    defaults = METHODS[record["method"]].parameters
    chosen = {name: record[name] for name in defaults if name == "scale" or record[name] != defaults[name]}
    return ", ".join(f"{name}={value}" for name, value in chosen.items()) or "no parameters"


def _score(record: Record) -> float:
    return record["mean"] if record.get("normalized") is None else record["normalized"]


def _record(row: Row, references: Mapping[str, Tensor]) -> Record:
    labels = dict(row.labels)
    recipe, parameters = labels.pop("recipe", {}), labels.pop("parameters", {})
    text = ", ".join(f"{name}={value}" for name, value in recipe.items())
    record: Record = {"key": row.key, "kind": row.kind, "state": row.state, "method": labels.pop("method", None)}
    record |= {"tasks": "+".join(labels.pop("tasks")), "seed": labels.pop("seed", None), "recipe": text or None}
    record |= {f"recipe.{name}": value for name, value in recipe.items()} | labels | parameters | {"share": row.share}
    record |= {name: value for name, value in row.facts.items()}
    if row.results:
        correct = _correct(row)
        accuracies = statistics.accuracies(correct)
        record |= {f"accuracy.{task}": measured.value for task, measured in accuracies.items()}
        mean, normalized = _means(row, correct, references)
        record |= {"mean": mean.value, "mean_stderr": mean.stderr}
        if normalized is not None and row.kind == "merge":
            record |= {"normalized": normalized.value, "normalized_stderr": normalized.stderr}
    return record | {"seconds": row.seconds, "arithmetic_seconds": row.arithmetic_seconds, "error": row.error}


def _means(row: Row, correct: Mapping[str, Tensor], references: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Mean accuracy; mean normalised accuracy, None where a reference is not there or never right."""
    mean = statistics.mean_of(statistics.accuracies(correct))
    theirs = {}
    for place, (task, found) in enumerate(correct.items()):
        reference = references.get(_reference(row, place))
        if reference is None:
            return mean, None
        theirs[task] = reference[: len(found)]
    try:
        return mean, statistics.mean_of(statistics.ratios(correct, theirs))
    except DataError:
        return mean, None


def _correct(row: Row) -> dict[str, Tensor]:
    return {task: torch.from_numpy(found).double() for task, found in correct_of(row).items()}


def _reference(row: Row, place: int) -> str:
    """What the images, the head and the fine-tuned model of one task of a row are."""
    identity = row.identity
    split, *counts = identity["images"]
    return json.dumps([identity["encoder"], identity["tasks"][place], split, counts[place], identity["precision"]])
