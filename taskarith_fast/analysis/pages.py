"""Templates of pages: all that a page needs is in it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2


def inline(image: bytes) -> str:
    """The address of a PNG that is part of the page."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def render(template: str, **words: Any) -> str:
    """Fill a template of this folder; a name it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**words)
