"""Finished points in an SQLite database: one row a point, written the moment it is finished."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskarith_fast.errors import DataError

SCHEMA_VERSION = 1
_APPLICATION = 0x7461666B  # "tafk"
_TABLE = """CREATE TABLE IF NOT EXISTS point (
    key TEXT PRIMARY KEY,       -- hash of the configuration
    kind TEXT NOT NULL,         -- probe, masks, finetune, single, merge
    state TEXT NOT NULL,        -- done, or failed with its error
    labels TEXT NOT NULL,       -- JSON: method, parameters, tasks, seed, recipe
    identity TEXT NOT NULL,     -- JSON: all that the result depends on
    share REAL NOT NULL,        -- part of every task's images that was judged
    results TEXT NOT NULL,      -- JSON: task -> [right, images]
    correct BLOB NOT NULL,      -- a bit an image, task after task, each from a new byte, in the sweep's order
    facts TEXT NOT NULL,        -- JSON: what a training run recorded
    seconds REAL NOT NULL,
    arithmetic_seconds REAL NOT NULL,
    error TEXT
) WITHOUT ROWID"""


@dataclass(frozen=True)
class Row:
    """One point."""

    key: str
    kind: str
    state: str
    labels: Mapping[str, Any]
    identity: Mapping[str, Any]
    share: float
    results: Mapping[str, tuple[int, int]]
    """Task -> right predictions, images."""
    correct: bytes
    facts: Mapping[str, Any]
    seconds: float
    arithmetic_seconds: float
    error: str | None = None


_JSON = ("labels", "identity", "results", "facts")
_FIELDS = tuple(Row.__dataclass_fields__)


class Store:
    """The database of one sweep, opened or made; one process writes.

    Args:
        path: Its file.

    Raises:
        DataError: If the file is no database of a sweep, of another schema, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            self._database = sqlite3.connect(path)
            self._check()
            self._database.execute("PRAGMA journal_mode = WAL")
            # Full: a point that was reported finished is on the disk, even if the machine stops.
            self._database.execute("PRAGMA synchronous = FULL")
            with self._database:
                self._database.execute(_TABLE)
                self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def put(self, row: Row) -> None:
        """Write a point, in place of the same point if it is there.

        Raises:
            DataError: If the disk is full; all earlier points are kept.
        """
        values = [json.dumps(getattr(row, f)) if f in _JSON else getattr(row, f) for f in _FIELDS]
        marks = ", ".join("?" * len(_FIELDS))
        with self._explained(), self._database:
            self._database.execute(f"INSERT OR REPLACE INTO point ({', '.join(_FIELDS)}) VALUES ({marks})", values)

    def rows(self) -> list[Row]:
        """Every point, in the order of the keys."""
        with self._explained():
            found = self._database.execute(f"SELECT {', '.join(_FIELDS)} FROM point ORDER BY key").fetchall()
        return [_row(dict(zip(_FIELDS, values, strict=True))) for values in found]

    def _check(self) -> None:
        """Refuse what another program, or another version of this one, wrote."""
        tables = [name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        application = self._database.execute("PRAGMA application_id").fetchone()[0]
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if (tables or application or version) and application != _APPLICATION:
            raise DataError(f"{self.path}: expected a database of taskarith sweep, got another program's; move it away")
        if application and version != SCHEMA_VERSION:
            raise DataError(
                f"{self.path}: expected a sweep database of schema {SCHEMA_VERSION}, got {version}; "
                "move it away, or use the version that wrote it"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "not a database" in text:
                text = "expected a database of taskarith sweep, got another file; move it away"
            elif "full" in text:
                text = "the disk is full; finished points are kept, make room and run the same command again"
            raise DataError(f"{self.path}: {text}") from None


def _row(values: dict[str, Any]) -> Row:
    for name in _JSON:
        values[name] = json.loads(values[name])
    values["results"] = {task: (right, images) for task, (right, images) in values["results"].items()}
    return Row(**values)
