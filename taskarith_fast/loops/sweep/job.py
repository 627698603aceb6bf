"""What a worker is told: one job a point of the sweep, and what all jobs of a sweep have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from taskarith_fast.loops.files import EncoderChoice

FORMAT = 1
"""Raise it when the meaning of a stored point changes: older points are then computed again."""


@dataclass(frozen=True)
class Made:
    """A file that jobs read: a user's, or one that another job makes."""

    path: Path
    id: str
    """What is in it: the hash of the file, or the key of the job."""
    needs: tuple[str, ...] = ()
    """Key of the job that makes it; none for a user's file."""


@dataclass(frozen=True)
class Train:
    """Make a file: a head ("probe"), masks ("masks") or an encoder ("finetune")."""

    task: str
    preset: str
    settings: Mapping[str, Any]
    output: Path
    head: Path | None = None
    masks: Path | None = None


@dataclass(frozen=True)
class Judge:
    """Evaluate one model on tasks, each with its head: a merge of models, or the only one where there is no method."""

    tasks: tuple[str, ...]
    heads: tuple[Path, ...]
    models: tuple[Path, ...]
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    max_rank_ratio: float | None = None
    """The largest that this job's family asks of CART's decompositions; None where they are not shared."""


@dataclass(frozen=True, eq=False)
class Job:
    """One point of the sweep."""

    kind: str
    """"probe", "masks", "finetune", "single" (a fine-tuned model on its own task) or "merge"."""
    labels: Mapping[str, Any]
    """What a reader wants to know of it: method, parameters, tasks, seed, recipe."""
    identity: Mapping[str, Any]
    """All that the result depends on, as plain JSON values."""
    work: Train | Judge
    family: str
    """Jobs of one family share decompositions, thresholds or directions."""
    order: tuple[Any, ...] = ()
    """Their order within it: those that share most come together."""
    needs: tuple[str, ...] = ()
    """Keys of the jobs whose files it reads."""
    cost: float = 1.0
    """Expected work, in images that go forward."""
    share: tuple[float, float] = (0.0, 1.0)
    """Which part of every task's images is judged."""

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that name the result."""
        return hash_of([FORMAT, self.kind, self.identity])

    @property
    def made(self) -> Made:
        """The file that it makes; for training jobs."""
        assert isinstance(self.work, Train)
        return Made(self.work.output, self.key, (self.key,))


@dataclass(frozen=True)
class Setup:
    """What every worker knows; paths must mean the same to all of them."""

    encoder: EncoderChoice
    base: Path
    """The pre-trained state, safetensors."""
    tasks: Mapping[str, str]
    """Task name -> the words that find it."""
    shared: Path
    """Folder for what workers compute once for all."""
    split: str = "val"
    images: int = 0
    batch_size: int = 128
    precision: str = "float32"
    threads: int | None = 1


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a worker reports of a job."""

    key: str
    correct: Mapping[str, bytes] = field(default_factory=dict)
    """Task -> one byte an image of the job's share, 1 where the prediction is right."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a training run recorded."""
    seconds: float = 0.0
    arithmetic_seconds: float = 0.0
    """The part of it that went into weights: merging, decomposing, reading."""
    error: str | None = None
    """Why there is no result, in one line."""
    disk_full: bool = False


def hash_of(values: Any) -> str:
    """Sixteen hexadecimal digits that name plain JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
