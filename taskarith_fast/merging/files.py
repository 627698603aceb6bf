"""Merge checkpoint files into a checkpoint file, with a record of what went in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskarith_fast import __version__
from taskarith_fast.checkpoint import check_destination, load_state_dict, save_state_dict
from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.methods import find_method

PathLike = str | os.PathLike[str]


def merge_files(
    base: PathLike, finetuned: Sequence[PathLike], output: PathLike, *, method: str = "task_arithmetic",
    overwrite: bool = False, **parameters: Any,
) -> dict[str, Any]:  # fmt: skip
    """Merge checkpoints into ``output``; every check comes before any arithmetic, and nothing is written on an error.

    Args:
        base: The pre-trained checkpoint.
        finetuned: One or more fine-tuned checkpoints.
        output: Destination, ``.safetensors``; its metadata records method, parameters, version and input hashes.
        method: A name from ``merge_methods()``.
        overwrite: Replace an existing output.
        **parameters: The method's own parameters.

    Returns:
        The manifest: method, parameters, inputs (file name and sha256), tensors, tool version.

    Raises:
        ArgumentError: If the method or a parameter is not known, or no checkpoint is given.
        CheckpointError: If a checkpoint cannot be read, the models do not fit together, or the output exists.
    """
    row = find_method(method, parameters)
    output = Path(output)
    check_destination(output, overwrite)
    if not finetuned:
        raise ArgumentError("finetuned must name at least one checkpoint, got none")
    states = [dict(load_state_dict(path)) for path in (base, *finetuned)]
    merged = row.function(states[0], states[1:], **parameters)
    manifest = {
        "schema": 1,
        "tool": f"taskarith_fast {__version__}",
        "method": method,
        "parameters": {**row.parameters, **parameters},
        "base": _identity(Path(base)),
        "finetuned": [_identity(Path(path)) for path in finetuned],
        "tensors": len(merged),
    }
    save_state_dict(merged, output, metadata={"taskarith": json.dumps(manifest, sort_keys=True)}, overwrite=overwrite)
    return manifest


def _identity(path: Path) -> dict[str, str]:
    """File name and sha256 of the bytes; for a directory, of its safetensors files in name order."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as handle:
            while chunk := handle.read(1 << 22):
                digest.update(chunk)
    return {"name": path.name, "sha256": digest.hexdigest()}
