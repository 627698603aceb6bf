"""The table of a sweep as CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskarith_fast.analysis.results import write_text
from taskarith_fast.errors import ArgumentError, BackendError
from taskarith_fast.loops.sweep.table import Record


def check_export(path: Path) -> None:
    """Refuse a destination that could not be written, before any work.

    Raises:
        ArgumentError: If its ending is neither .csv nor .parquet, or its folder is not there.
        BackendError: If Parquet is asked for and pyarrow is not installed.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ArgumentError(f"export must end in .csv or .parquet, got {path.name!r}")
    if not path.parent.is_dir():
        raise ArgumentError(f"export must be in a folder that is there, got {path.parent}")
    if path.suffix == ".parquet":
        _pyarrow()


def export_records(records: Sequence[Record], path: Path) -> None:
    """Write one line a record; lists and the like as JSON. Errors as `check_export`."""
    check_export(path)
    plain = [{name: _plain(value) for name, value in record.items()} for record in records]
    if path.suffix == ".parquet":
        arrow, parquet = _pyarrow()
        parquet.write_table(arrow.Table.from_pylist(plain), path)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(plain[0]) if plain else ["key"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    write_text(path, text.getvalue())


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BackendError("export to Parquet needs the package pyarrow: pip install pyarrow, or export .csv") from None
    return pyarrow, pyarrow.parquet
