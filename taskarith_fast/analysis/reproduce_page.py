"""The HTML page of a reproduced table or figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
