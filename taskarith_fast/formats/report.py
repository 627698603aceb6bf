"""Inspections and conversions as lines of text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from taskarith_fast.formats.conversion import Conversion
from taskarith_fast.formats.inspection import Inspection


def inspection_lines(found: Inspection) -> Iterator[str]:
    """A table of the tensors, between what the file is and what is remarkable in it."""
    layout = f"{found.layout} names" if found.layout else "names of no vision transformer that is known here"
    wrapped = f", wrapped in {printable(found.prefix)}" if found.prefix else ""
    yield f"{printable(found.name)}: {found.kind}; {layout}{wrapped}"
    for name, facts in found.files.items():
        yield f"  {printable(name)}  {facts['bytes']:,} bytes  sha256 {facts['sha256']}"
    width = max((len(printable(name)) for name in found.tensors), default=4)
    yield f"{'tensor':{width}s}  {'dtype':9s} {'norm':>11s} {'zeros':>7s} {'bad':>5s}  shape"
    for name, t in found.tensors.items():
        norm = "" if t.norm is None else f"{t.norm:.5g}"
        zeros = f"{t.zeros / max(1, math.prod(t.shape)):.1%}"
        tie = f"  = {printable(found.tied[name])}" if name in found.tied else ""
        yield f"{printable(name):{width}s}  {t.dtype:9s} {norm:>11s} {zeros:>7s} {t.nonfinite:5d}  {list(t.shape)}{tie}"
    text = f", {found.text_parameters:,} of them text" if found.text_parameters else ""
    yield f"{len(found.tensors)} tensors, {found.parameters:,} parameters{text}; {found.nonfinite} NaN or Inf"
    if found.skipped:
        yield f"beside them: {', '.join(found.skipped)}"
    for name, value in found.metadata.items():
        yield f"metadata {printable(name)}: {printable(value)[:300]}"


def conversion_lines(done: Conversion) -> Iterator[str]:
    """What was written, then every change; names that differ in the number of their block share a line."""
    yield f"read {done.kind}"
    for label, pairs in (
        ("renamed", ((old, ", ".join(new)) for old, new in done.names.renamed.items())),
        ("dropped", done.names.dropped.items()),
        ("added", done.names.added.items()),
        ("tied", ((name, f"written once, as {first}") for name, first in done.tied.items())),
    ):
        arrow = "->" if label == "renamed" else "  "
        for (old, new), count in _collapsed(pairs):
            yield f"{label}  {old}  {arrow}  {new}{f'  (x{count})' if count > 1 else ''}"
    if done.skipped:
        yield f"left out, no tensors of the model: {', '.join(done.skipped)}"
    if done.cast:
        yield f"cast    {done.cast} tensors"
    yield from (f"note    {note}" for note in done.names.notes)


def printable(text: str) -> str:
    """`text` with everything that a terminal could take for a command spelled out."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _collapsed(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], int]]:
    counts: dict[tuple[str, str], int] = {}
    for old, new in pairs:
        spoken = re.sub(r"\.\d+\.", ".{i}.", printable(old)), re.sub(r"\.\d+\.", ".{i}.", printable(new))
        counts[spoken] = counts.get(spoken, 0) + 1
    yield from counts.items()
