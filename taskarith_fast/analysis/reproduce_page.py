"""The HTML page of a reproduced table or figure, and the page that lists them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from taskarith_fast.analysis.outcome import Outcome
from taskarith_fast.analysis.pages import inline, render


def render_reproduction(
    *, name: str, caption: str, source: str, claim: str, setting: str, papers: bool, outcome: Outcome, seconds: float,
    peak_mb: float, facts: Mapping[str, Any],
) -> str:  # fmt: skip
    """Render the page.

    Args:
        name, caption, source: Which table or figure of which paper.
        claim: What the paper says, in words.
        setting: What ran here, in words.
        papers: Whether that is the paper's own protocol.
        outcome: What was found.
        seconds, peak_mb: Cost of all stages when they were computed.
        facts: Configuration and provenance, plain JSON values.

    Returns:
        A complete HTML document; nothing is loaded from elsewhere.
    """
    images = [(caption, inline(light), inline(dark)) for caption, (light, dark) in outcome.figures.items()]
    return render(
        "reproduce.html.j2",
        name=name,
        caption=caption,
        source=source,
        claim=claim,
        setting=setting,
        papers=papers,
        checks=outcome.checks,
        tables=outcome.tables,
        images=images,
        seconds=seconds,
        peak_mb=peak_mb,
        facts=json.dumps(facts, indent=1, ensure_ascii=False),
    )


def stem_of(name: str) -> str:
    """What the files of an entry are called."""
    return name.replace("/", "-")


def render_index(documents: Sequence[Mapping[str, Any]], captions: Mapping[str, str]) -> str:
    """Render the list of pages.

    Args:
        documents: What `run_entry` wrote beside each page, in the order of the list.
        captions: Entry -> what it shows.

    Returns:
        A complete HTML document, with links to the pages beside it.
    """
    entries = []
    for document in documents:
        verdicts = Counter(check["verdict"] for check in document["checks"])
        entries.append({
            "name": document["name"],
            "page": f"{stem_of(document['name'])}.html",
            "holds": verdicts["holds"],
            "undecided": verdicts["undecided"],
            "fails": verdicts["does not hold"],
            "papers": document["papers_protocol"],
            "seconds": sum(stage["seconds"] for stage in document["stages"]),
            "caption": captions[document["name"]],
        })  # fmt: skip
    return render("reproduce_index.html.j2", entries=entries)
