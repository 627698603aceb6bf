"""Merge checkpoint files into a checkpoint, streamed, with a record of what went in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from taskarith_fast import __version__
from taskarith_fast.checkpoint.commit import remove_debris, staged
from taskarith_fast.checkpoint.header import Entry
from taskarith_fast.checkpoint.shards import ShardWriter
from taskarith_fast.errors import ArgumentError
from taskarith_fast.formats.tied import write_tied
from taskarith_fast.hashing import BegunHashes
from taskarith_fast.merging.card import model_card
from taskarith_fast.merging.hashing import Hashes
from taskarith_fast.merging.plan import Plan, plan_merge
from taskarith_fast.merging.stream import run_plan
from taskarith_fast.progress import SILENT, Progress

PathLike = str | os.PathLike[str]


def merge_files(
    base: PathLike,
    finetuned: Sequence[PathLike],
    output: PathLike,
    *,
    method: str = "task_arithmetic",
    dtype: str | torch.dtype | None = None,
    shard_size: int | str | None = None,
    memory: int | str | None = None,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    hash_inputs: bool | BegunHashes = True,
    card: bool = True,
    progress: Progress = SILENT,
    **parameters: Any,
) -> dict[str, Any]:
    """Merge checkpoints into ``output``, without ever holding a model in memory.

    Every check that headers allow comes before any arithmetic. The output is absent, old, or complete at any moment;
    its bytes do not depend on `memory`, `shard_size` or the number of threads, and equal those of ``merge``.

    Args:
        base: The pre-trained checkpoint: a safetensors file, a directory of them, or a PyTorch file.
        finetuned: One or more fine-tuned checkpoints; their floating dtypes may differ.
        output: Destination: a name ending in ``.safetensors``, or a directory.
        method: A name from ``merge_methods()``.
        dtype: Type of the merged tensors, "float32", "bfloat16" or "float16"; None keeps that of the base. Where the
            dtypes differ, the arithmetic runs in float32 and is rounded once more.
        shard_size: Bytes of tensors in a file of an output directory, such as "5GB"; None makes one file.
        memory: Bytes for buffers, such as "256MB"; 40 MiB by default, for any number of models; methods that need whole
            tensors take T of the largest besides.
        device: Where the arithmetic runs, "cpu", "cuda", "cuda:1" ...
        overwrite: Replace an existing output.
        hash_inputs: Record the inputs' sha256; they are hashed beside the merge, if that has not begun already.
        card: Write a README.md into an output directory.
        progress: Where to show how far it is.
        **parameters: The method's own parameters; those that bring statistics, fishers and grams, are lists of paths,
            one a task, read piece by piece like the models.

    Returns:
        The manifest, which is also stored in the output's metadata: method, parameters, dtype, inputs (name and
        sha256), number of tensors, names of those copied from the base, tied names, tool version.

    Raises:
        ArgumentError: If the method or a parameter is not known, or no checkpoint is given.
        CheckpointError: If a checkpoint cannot be read, the models do not fit together, hold NaN or Inf, the output
            exists, or the disk is full.
    """
    place = _device(device)
    plan = plan_merge(
        base, finetuned, output, method=method, dtype=dtype, shard_size=shard_size, memory=memory,
        overwrite=overwrite, hash_inputs=bool(hash_inputs), **parameters,
    )  # fmt: skip
    plan.raise_first()
    remove_debris(plan.output)
    with Hashes(plan.inputs, hash_inputs) as hashes, staged(plan.output, directory=plan.directory) as target:
        with ShardWriter(target, plan.shards, lambda shard: _metadata(plan, hashes.found, shard)) as files:
            run_plan(plan, files, device=place, progress=progress)
            hashes.wait()
            files.finish()
        manifest = _manifest(plan, hashes.found)
        if plan.directory:
            _complete_directory(plan, target, manifest, card)
    return manifest


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ArgumentError(f"device must be cpu, cuda or cuda:N, got {device!r}") from None
    if place.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(f"device={str(device)!r} needs a CUDA device, torch {torch.__version__} sees none")
    return place


def _manifest(plan: Plan, hashes: Sequence[str | None]) -> dict[str, Any]:
    inputs = [{"name": s.path.name, "sha256": h} for s, h in zip(plan.inputs, hashes, strict=True)]
    models = len(plan.sources)
    return {
        "schema": 1,
        "tool": f"taskarith_fast {__version__}",
        "method": plan.method,
        "parameters": plan.parameters,
        "base": inputs[0],
        "finetuned": inputs[1:models],
        **({plan.statistics_name: inputs[models:]} if plan.statistics else {}),
        "tensors": len(plan.entries),
        "copied": list(plan.copied),
        "tied": plan.tied,
        "dtypes": sorted({plan.entries[name].dtype for name in plan.merged}),
    }


def _metadata(plan: Plan, hashes: Sequence[str | None], shard: Mapping[str, Entry]) -> dict[str, str]:
    tied = {name: own for name, own in plan.tied.items() if own in shard}
    return write_tied(tied, {"format": "pt", "taskarith": json.dumps(_manifest(plan, hashes), sort_keys=True)})


def _complete_directory(plan: Plan, target: Path, manifest: dict[str, Any], card: bool) -> None:
    """The files that make a directory a model: the base's configuration, and the card."""
    folder = plan.sources[0].path
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".index.json"):
                shutil.copyfile(file, target / file.name)
    if card:
        (target / "README.md").write_text(model_card(manifest))
