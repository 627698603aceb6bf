"""Tied tensors of several models: one name to merge a tensor under, whichever names each model holds it by.

Names that one model ties stand for one tensor in all of them. A model may lack such names, as Hugging Face's files do
that leave tied ones out, or hold them apart, as copies made for safetensors are: then the copies must be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from taskarith_fast.checkpoint import LazyState
from taskarith_fast.checkpoint.header import Entry
from taskarith_fast.checkpoint.sources import Source
from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.tied import find_tied

State = Mapping[str, Tensor]


def common_ties(names: Sequence[Iterable[str]], tied: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The other names of every tensor that one of the models ties.

    Args:
        names: What each model holds, the base first.
        tied: Of each model, other name -> the name that it holds.

    Returns:
        Other name -> the name to merge under: the first of them that a model holds.
    """
    groups: dict[str, set[str]] = {}
    for one in tied:
        for pair in one.items():
            group = set().union(*(groups.get(name, {name}) for name in pair))
            groups.update(dict.fromkeys(group, group))
    first: dict[int, str] = {}
    for name in (name for one in names for name in one if name in groups):
        first.setdefault(id(groups[name]), name)
    return {name: first[id(group)] for name, group in groups.items() if name != first[id(group)]}


def held_names(names: Iterable[str], others: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """How one model, or a file of statistics, holds the tensors to be merged.

    Args:
        names: Its own, other names of tied tensors left out.
        others: Of `common_ties`.

    Returns:
        Name to merge under -> its own; and further names of its own that must hold the same -> the one they repeat.
    """
    held: dict[str, str] = {}
    copies = {}
    for name in names:
        own = held.setdefault(others.get(name, name), name)
        if own != name:
            copies[name] = own
    return held, copies


class RenamedSource:
    """A source whose tensors go by the names that they are merged under."""

    def __init__(self, source: Source, held: Mapping[str, str]) -> None:
        self._source, self._held = source, held
        self.path: Path = source.path
        self.files: tuple[Path, ...] = source.files
        self.resident: int = source.resident
        self.entries: Mapping[str, Entry] = {name: source.entries[own] for name, own in held.items()}
        self.tied: Mapping[str, str] = {}

    def read(self, name: str, begin: int, out: memoryview) -> None:
        self._source.read(self._held[name], begin, out)

    def read_many(self, reads: Iterable[tuple[str, int, memoryview]]) -> None:
        self._source.read_many((self._held[name], begin, out) for name, begin, out in reads)


def under_one_name(models: Sequence[State], statistics: Sequence[State]) -> tuple[list[State], dict[str, str]]:
    """Models and statistics in memory with every tied tensor once, and its other names.

    Raises:
        CheckpointError: If one holds different tensors under names that another ties.
    """
    ties = [state.tied if isinstance(state, LazyState) else find_tied(state) for state in models]
    own = [[name for name in state if name not in tied] for state, tied in zip(models, ties, strict=True)]
    others = common_ties(own, ties)
    if not others:
        return [*models, *statistics], {}
    names = [*own, *(list(state) for state in statistics)]
    labels = ["base", *(f"finetuned[{t}]" for t in range(len(models) - 1))]
    labels += [f"the statistics of task {t}" for t in range(len(statistics))]
    states = zip((*models, *statistics), names, labels, strict=True)
    return [_one_name(state, own, others, label) for state, own, label in states], others


def with_every_name(merged: Mapping[str, Tensor], base: State, others: Mapping[str, str]) -> dict[str, Tensor]:
    """A merge under one name for each tensor, with all names of `base` and the other names of `under_one_name`."""
    return {name: merged[others.get(name, name)] for name in dict.fromkeys((*base, *others))}


def contradiction(name: str, own: str, label: str) -> CheckpointError:
    """`label` holds under `name` other values than under `own`, though another model ties the two."""
    return CheckpointError(
        f"{name}: another model ties it to {own}, and must hold the same in {label}, which differs; write the models "
        f"that tie them by taskarith convert --untie"
    )


def _one_name(state: State, names: Iterable[str], others: Mapping[str, str], label: str) -> State:
    held, copies = held_names(names, others)
    for name, own in copies.items():
        if state[name].shape != state[own].shape or not bool((state[name] == state[own]).all()):
            raise contradiction(name, own, label)
    return {name: state[own] for name, own in held.items()}
