"""From the table of a sweep to its page."""

from __future__ import annotations

from collections.abc import Sequence

from taskarith_fast.analysis.results import write_text
from taskarith_fast.analysis.sweep_page import render_sweep
from taskarith_fast.loops.machine import machine_facts, versions
from taskarith_fast.loops.sweep.plan import Plan
from taskarith_fast.loops.sweep.table import Record, best_of, settings_of

_HIDDEN = ("key", "kind", "state", "share", "error", "arithmetic_seconds", "normalized_stderr")


def write_page(records: Sequence[Record], plan: Plan, device: str) -> None:
    """Write report.html into the sweep's folder.

    Args:
        records: The table, `records_of`.
        plan: What was swept.
        device: "cpu" or "cuda", where it ran.
    """
    merges = [r for r in records if r["kind"] == "merge" and r["state"] == "done" and r["share"] == 1.0]
    named = [record | {"line": _line(record), "chart": _chart(record)} for record in merges]
    used = [name for name in (records[0] if records else {}) if name not in _HIDDEN and _varies(merges, name)]
    facts = {"sweep": plan.file.model_dump(), "versions": versions(), "machine": machine_facts(device)}
    best = [record | {"settings": settings_of(record)} for record in best_of(records)]
    text = render_sweep(
        f"Sweep {plan.folder.name}", best, named, ["method", *(n for n in used if n != "method")], facts
    )
    write_text(plan.folder / "report.html", text)


def _varies(records: Sequence[Record], name: str) -> bool:
    """Whether a column tells rows apart."""
    return len({str(record[name]) for record in records}) > 1


def _line(record: Record) -> str:
    rest = settings_of(record | {"scale": None}).replace("scale=None", "").strip(", ")
    return f"{record['method']} {rest}".strip()


def _chart(record: Record) -> str:
    words = [record["tasks"], record["recipe"], None if record["seed"] is None else f"seed {record['seed']}"]
    return ", ".join(word for word in words if word)
