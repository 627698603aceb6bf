"""The small tasks that ship with the package: seven of images (built by tools/build_pack.py), seven of texts
(tools/build_text_pack.py)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from taskarith_fast.data.npz import load_npz
from taskarith_fast.data.task import SPLITS, Task
from taskarith_fast.data.text import load_tsv
from taskarith_fast.errors import ArgumentError, DataError

PACK_ROOT = Path(__file__).parent / "pack"
TEXT_PACK_ROOT = Path(__file__).parent / "text_pack"
_FIELDS = {"file", "sha256", "classes", "counts", "licence", "source"}


def load_tasks(names: Iterable[str] | None = None, root: str | Path | None = None) -> dict[str, Task]:
    """Load tasks of a pack; every file is checked against the sha256 in the pack's manifest.

    Args:
        names: Tasks to load, in this order; all of them, in the manifest's order, if not given.
        root: Folder with `manifest.json` and the .npz or .tsv files; the shipped pack of images if not given.

    Raises:
        ArgumentError: If a name is not in the pack.
        DataError: If a file is missing, changed, or does not hold what the manifest says.
    """
    folder = PACK_ROOT if root is None else Path(root)
    entries = _manifest(folder)
    chosen = list(entries) if names is None else list(names)
    for name in chosen:
        if name not in entries:
            raise ArgumentError(f"names must be among {', '.join(entries)}, got {name!r}")
    return {name: _load(name, entries[name], folder) for name in chosen}


def load_text_tasks(names: Iterable[str] | None = None) -> dict[str, Task]:
    """`load_tasks` for the shipped tasks of texts."""
    return load_tasks(names, TEXT_PACK_ROOT)


def shipped_tasks() -> dict[str, Path]:
    """The names of all tasks that ship with the package, and the pack of each."""
    return {name: root for root in (PACK_ROOT, TEXT_PACK_ROOT) for name in _manifest(root)}


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        entries = dict(json.loads(path.read_text(encoding="utf-8"))["tasks"])
        if not all(entry.keys() >= _FIELDS for entry in entries.values()):
            raise KeyError
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; root must be a folder that tools/build_pack.py wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not a manifest of tools/build_pack.py; build the pack again") from None
    return entries


def _load(name: str, entry: dict[str, Any], folder: Path) -> Task:
    path = folder / entry["file"]
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise DataError(f"{path}: no such file, but the manifest lists it; build the pack again") from None
    if found != entry["sha256"]:
        raise DataError(f"{path}: sha256 must be {entry['sha256'][:12]}..., got {found[:12]}...; the file has changed")
    load = load_tsv if path.suffix == ".tsv" else load_npz
    task = load(path, name=name, licence=entry["licence"], source=entry["source"])
    if list(task.classes) != entry["classes"]:
        raise DataError(
            f"{path}: the manifest lists {len(entry['classes'])} classes, the file {len(task.classes)} others"
        )
    counts = {split: len(task.splits[split]) for split in SPLITS}
    if counts != entry["counts"]:
        raise DataError(f"{path}: the manifest counts {entry['counts']} samples, the file has {counts}")
    return task
