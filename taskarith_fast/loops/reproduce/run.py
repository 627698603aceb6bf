"""One table or figure of the papers, from its name to its page."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from taskarith_fast.analysis.reproduce_page import render_reproduction
from taskarith_fast.analysis.results import write_text
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.demo import make_folder
from taskarith_fast.loops.demo_config import as_json
from taskarith_fast.loops.machine import machine_facts, versions
from taskarith_fast.loops.reproduce.bench import Bench
from taskarith_fast.loops.reproduce.entries import ABSENT, ENTRIES
from taskarith_fast.loops.reproduce.published import published
from taskarith_fast.loops.reproduce.setting import Setting, papers, shipped
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.runtime import threads as limit_threads
from taskarith_fast.loops.stages import Store


def entry_lines() -> list[str]:
    """Every table and figure of the papers, a line each, those without a recipe with the reason."""
    found = published()
    return [f"{name:16s} {entry.caption}" if name in ENTRIES else f"{name:16s} (not here: {ABSENT[name]})"
            for name, entry in found.items()]  # fmt: skip


def reproduce(
    name: str, out: Path, *, data: Path | None = None, encoder: str | None = None, quick: bool = False, seeds: int = 1,
    device: str = "auto", threads: int = 0,
) -> Path:  # fmt: skip
    """Run a paper's protocol and write its page.

    Args:
        name: "talos/table1" and the like, see `entry_lines`.
        out: Folder of pages and of finished stages; entries that need the same models share them.
        data: Folder with the papers' eight datasets. With it the paper's protocol runs on the paper's encoder; without
            it the same protocol runs on the shipped tasks and backbone.
        encoder: Another encoder, as for `load_encoder`.
        quick: Fewer tasks, images and points; without effect on the papers' data.
        seeds: Seeds of fine-tuning to average over; analyses take the first.
        device, threads: As for `run_demo`.

    Returns:
        Path of the page; beside it lies the outcome as JSON.

    Raises:
        ArgumentError: If there is no such entry, or an argument is out of its domain.
        DataError, CheckpointError: If `data` lacks a dataset, or weights are missing.
    """
    if name not in ENTRIES:
        raise ArgumentError(_unknown(name))
    if seeds < 1 or threads < 0:
        raise ArgumentError(f"seeds must be at least 1 and threads at least 0, got {seeds} and {threads}")
    entry = ENTRIES[name]
    make_folder(out)
    with limit_threads(threads or None):
        if data is not None:
            setting = papers(data, encoder or entry.encoder, heads=entry.heads, seeds=seeds, device=device)
        else:
            setting = shipped(quick=quick, seeds=seeds, device=device, encoder=encoder)
        return run_entry(name, setting, out)


def run_entry(name: str, setting: Setting, out: Path) -> Path:
    """Run an entry in any setting."""
    entry, paper = ENTRIES[name], published()[name]
    bench = Bench(setting, Store(out / "stages"))
    outcome = entry.run(bench, paper)
    facts: dict[str, Any] = {
        "configuration": as_json(setting.config),
        "versions": versions(),
        "machine": machine_facts(device_of(setting.encoder).type),
        "stages": [
            {"stage": stage, "seconds": round(cost.seconds, 2), "peak_rss_mb": round(cost.peak_rss_mb)}
            for stage, cost in bench.cost.items()
        ],
    }
    stem = name.replace("/", "-")
    page = render_reproduction(
        name=name, caption=paper.caption, source=paper.source, claim=entry.claim, setting=setting.words,
        papers=setting.papers, outcome=outcome, seconds=sum(cost.seconds for cost in bench.cost.values()),
        peak_mb=max((cost.peak_rss_mb for cost in bench.cost.values()), default=0.0), facts=facts,
    )  # fmt: skip
    document = {
        "name": name,
        "source": paper.source,
        "claim": entry.claim,
        "papers_protocol": setting.papers,
        "checks": [{**vars(check), "verdict": check.verdict} for check in outcome.checks],
        "tables": [vars(table) for table in outcome.tables],
        **facts,
    }
    write_text(out / f"{stem}.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    write_text(out / f"{stem}.html", page)
    return out / f"{stem}.html"


def _unknown(name: str) -> str:
    if name in ABSENT:
        return f"{name} has no recipe here: {ABSENT[name]}"
    close = difflib.get_close_matches(name, ENTRIES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; taskarith reproduce --list shows them"
    return f"name must be a table or figure such as talos/table1, got {name!r}{hint}"
