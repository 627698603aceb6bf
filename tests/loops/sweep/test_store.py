"""The database: rows come back as they were, foreign files are refused, a full disk loses nothing."""

import sqlite3

import pytest

from taskarith_fast.errors import DataError
from taskarith_fast.loops.sweep.store import Row, Store


def row(key="a", **changes):
    fields = {
        "key": key, "kind": "merge", "state": "done", "labels": {"method": "ties", "tasks": ["x"]},
        "identity": {"images": ["val", 9]}, "share": 1.0, "results": {"x": (5, 9)}, "correct": b"\xf8\x00",
        "facts": {}, "seconds": 1.5, "arithmetic_seconds": 0.25, "error": None,
    }  # fmt: skip
    return Row(**fields | changes)


def test_rows_come_back_as_they_were(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.put(row("b"))
        store.put(row("a", state="failed", error="no"))
    with Store(tmp_path / "s.sqlite") as store:
        assert store.rows() == [row("a", state="failed", error="no"), row("b")]


def test_a_point_is_there_once(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.put(row(seconds=1.0))
        store.put(row(seconds=2.0))
        assert [found.seconds for found in store.rows()] == [2.0]


def test_a_row_is_seen_by_others_as_soon_as_it_is_put(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.put(row())
        other = sqlite3.connect(tmp_path / "s.sqlite")
        assert other.execute("SELECT count(*) FROM point").fetchone() == (1,)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        other.close()


def test_another_schema_is_refused(tmp_path):
    Store(tmp_path / "s.sqlite").__exit__()
    database = sqlite3.connect(tmp_path / "s.sqlite")
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(DataError, match="expected a sweep database of schema 1, got 7"):
        Store(tmp_path / "s.sqlite")


def test_another_program_s_database_is_refused(tmp_path):
    database = sqlite3.connect(tmp_path / "s.sqlite")
    database.execute("CREATE TABLE point (key TEXT)")
    database.close()
    with pytest.raises(DataError, match="got another program's"):
        Store(tmp_path / "s.sqlite")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "s.sqlite").write_bytes(b"hello" * 1000)
    with pytest.raises(DataError, match="expected a database of taskarith sweep, got another file"):
        Store(tmp_path / "s.sqlite")


def test_a_full_disk_keeps_what_was_finished(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    store._database.execute("PRAGMA max_page_count = 20")  # SQLite's own way to a full disk
    kept = 0
    with pytest.raises(DataError, match="the disk is full; finished points are kept"):
        for i in range(1000):
            store.put(row(f"{i:04d}"))
            kept += 1
    store.__exit__()
    assert kept > 5
    with Store(tmp_path / "s.sqlite") as again:
        assert [found.key for found in again.rows()] == [f"{i:04d}" for i in range(kept)]
