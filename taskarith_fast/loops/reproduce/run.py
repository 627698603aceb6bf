"""One table or figure of the papers, from its name to its page."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskarith_fast.analysis.reproduce_page import render_index, render_reproduction, stem_of
from taskarith_fast.analysis.results import write_text
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.demo import make_folder
from taskarith_fast.loops.demo_config import as_json
from taskarith_fast.loops.machine import machine_facts, versions
from taskarith_fast.loops.reproduce.bench import Bench
from taskarith_fast.loops.reproduce.encoders import AXES, PAPER, SHIPPED
from taskarith_fast.loops.reproduce.entries import ENTRIES, Entry
from taskarith_fast.loops.reproduce.published import published
from taskarith_fast.loops.reproduce.setting import OWN, Setting, papers, shipped, words_of
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.runtime import threads as limit_threads
from taskarith_fast.loops.stages import Artefact, Store


def entry_lines() -> list[str]:
    """Every table and figure of the papers, a line each."""
    found = published()
    return [f"{name:16s} {entry.caption}" for name, entry in found.items()]


def entries_named(word: str, encoder: str | None = None) -> list[str]:
    """The entries that a word names: one, those of a paper ("cart"), or "all".

    Args:
        word: What a user asks for.
        encoder: As for `reproduce`: several are for entries that compare encoders.

    Raises:
        ArgumentError: If there is none, or one of them compares no encoders and `encoder` names several.
    """
    names = [name for name in ENTRIES if word in ("all", name, name.partition("/")[0])]
    if not names:
        close = difflib.get_close_matches(word, ENTRIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "taskarith reproduce --list shows them"
        raise ArgumentError(
            f"name must be a table or figure such as talos/table1, a paper, or all; got {word!r}; {hint}"
        )
    alone = next((name for name in names if not ENTRIES[name].axis), None)
    if alone and len(_named(encoder)) > 1:
        raise ArgumentError(f"encoder must be one name: {alone} compares no encoders, got {encoder!r}")
    return names


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
        encoder: Another encoder, as for `load_encoder`; for entries that compare encoders several, with commas between.
        quick: Fewer tasks, images and points; without effect on the papers' data.
        seeds: Seeds of fine-tuning to average over; analyses take the first.
        device, threads: As for `run_demo`.

    Returns:
        Path of the page; beside it lie the outcome as JSON, and `index.html`, which lists all pages of the folder.

    Raises:
        ArgumentError: If there is no such entry, or an argument is out of its domain.
        DataError, CheckpointError: If `data` lacks a dataset, or weights are missing.
    """
    if entries_named(name, encoder) != [name]:
        raise ArgumentError(f"name must be one table or figure, got {name!r}")
    if seeds < 1 or threads < 0:
        raise ArgumentError(f"seeds must be at least 1 and threads at least 0, got {seeds} and {threads}")
    entry = ENTRIES[name]
    with limit_threads(threads or None):
        common: dict[str, Any] = {"seeds": seeds, "device": device}
        if data is not None:
            heads = "probe" if entry.axis else entry.heads
            settings = [papers(data, one, label=label, heads=heads, **common) for label, one in
                        (_named(encoder) or _papers_encoders(entry)).items()]  # fmt: skip
        elif encoder is not None:
            settings = [shipped(quick=quick, encoder=one, **common) for one in _named(encoder)]
        else:
            variants = SHIPPED[entry.axis] if entry.axis else [OWN]
            settings = [shipped(quick=quick, variant=variant, **common) for variant in variants]
        make_folder(out)
        return run_entry(name, settings, out)


def run_entry(name: str, settings: Sequence[Setting], out: Path) -> Path:
    """Run an entry in any setting, or in several that differ in the encoder if that is what it compares."""
    entry, paper = ENTRIES[name], published()[name]
    costs: dict[str, Artefact] = {}
    benches = {setting.name: Bench(setting, Store(out / "stages"), costs) for setting in settings}
    outcome = entry.run(benches if entry.axis else benches[settings[0].name], paper)
    configurations = [as_json(setting.config) for setting in settings]
    facts: dict[str, Any] = {
        "configuration": configurations if entry.axis else configurations[0],
        "versions": versions(),
        "machine": machine_facts(device_of(settings[0].encoder).type),
        "stages": [
            {"stage": stage, "seconds": round(cost.seconds, 2), "peak_rss_mb": round(cost.peak_rss_mb)}
            for stage, cost in costs.items()
        ],
    }
    stem = stem_of(name)
    page = render_reproduction(
        name=name, caption=paper.caption, source=paper.source, claim=entry.claim, setting=words_of(settings),
        papers=settings[0].papers, outcome=outcome, seconds=sum(cost.seconds for cost in costs.values()),
        peak_mb=max((cost.peak_rss_mb for cost in costs.values()), default=0.0), facts=facts,
    )  # fmt: skip
    document = {
        "name": name,
        "source": paper.source,
        "claim": entry.claim,
        "papers_protocol": settings[0].papers,
        "checks": [{**vars(check), "verdict": check.verdict} for check in outcome.checks],
        "tables": [vars(table) for table in outcome.tables],
        **facts,
    }
    write_text(out / f"{stem}.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    write_text(out / f"{stem}.html", page)
    _write_index(out)
    return out / f"{stem}.html"


def _write_index(out: Path) -> None:
    """List the pages of a folder in `index.html`, in the order of the papers."""
    files = [out / f"{stem_of(name)}.json" for name in ENTRIES]
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    write_text(out / "index.html", render_index(documents, {name: e.caption for name, e in published().items()}))


def _named(encoder: str | None) -> dict[str, str]:
    """The encoders that a user named, by name."""
    return {name.strip(): name.strip() for name in encoder.split(",")} if encoder else {}


def _papers_encoders(entry: Entry) -> dict[str, str]:
    """What the paper ran an entry on: what it calls an encoder -> its name here."""
    return {label: PAPER[label] for label in AXES[entry.axis]} if entry.axis else {entry.encoder: entry.encoder}
