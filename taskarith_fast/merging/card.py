"""The README.md of a merged model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskarith_fast.merging.methods import METHODS


def model_card(manifest: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read, from the manifest of a merge."""
    parameters = "\n".join(f"| {name} | {value} |" for name, value in manifest["parameters"].items())
    inputs = [("base", manifest["base"]), *((f"task {t}", m) for t, m in enumerate(manifest["finetuned"]))]
    rows = "\n".join(f"| {role} | {m['name']} | {m['sha256'] or 'not recorded'} |" for role, m in inputs)
    table = f"\n| parameter | value |\n|---|---|\n{parameters}\n" if parameters else ""
    return (
        "---\nlibrary_name: taskarith_fast\ntags:\n- merge\n- model-merging\n---\n\n"
        f"# Merged by {manifest['method']}\n\n"
        f"{len(manifest['finetuned'])} fine-tuned models merged into one ({METHODS[manifest['method']].paper}).\n"
        f"{table}\n| input | name | sha256 |\n|---|---|---|\n{rows}\n\n"
        f"{manifest['tensors']} tensors, of which {len(manifest['copied'])} are copied from the base. "
        f"Made with {manifest['tool']}.\n"
    )
