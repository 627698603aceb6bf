"""The papers' own numbers, read from one file: ``published.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """One table or figure."""

    name: str
    caption: str
    columns: tuple[str, ...]
    """Of the table, the first names the rows; empty where there are no numbers."""
    rows: tuple[tuple[Any, ...], ...]
    source: str
    """Authors, title, venue, arXiv identifier, and which table or figure of it."""


@cache
def published() -> dict[str, Published]:
    """Every table and figure of the four papers by name: tables first, paper by paper."""
    document = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
    found = {}
    for name, entry in document["entries"].items():
        paper, place = name.split("/")
        facts = document["papers"][paper]
        words = place.replace("table", "table ").replace("figure", "figure ")
        source = f"{facts['authors']}: {facts['title']}. {facts['venue']}, arXiv:{facts['arxiv']}, {words}"
        rows = tuple(tuple(row) for row in entry["rows"])
        found[name] = Published(name, entry["caption"], tuple(entry["columns"]), rows, source)
    return found
