"""Stages of a long job: each is named, keyed by all that its result depends on, and kept on disk when
finished.
 A stage's key is the hash of its settings and of the keys of the stages it reads, so a changed learning rate
gives new keys to everything after it and leaves the rest to be reused. Numbers go to ``<name>-<key>.json``,
tensors to ``<name>-<key>.safetensors``; the JSON file is written last, by renaming, so a stage is finished
when it exists.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from taskarith_fast.analysis.results import write_text
from taskarith_fast.checkpoint import load_state_dict, save_state_dict
from taskarith_fast.errors import CheckpointError

# Raise it when the meaning of a stored stage changes: older files are then not reused.
_FORMAT = 1

Context = TypeVar("Context")


@dataclass(frozen=True, eq=False)
class Artefact:
    """What a finished stage left: numbers, and tensors that are read from disk when looked up."""

    facts: dict[str, Any]
    tensors: Mapping[str, Tensor]
    seconds: float
    """Wall time of the run that computed it."""
    peak_rss_mb: float
    """Largest resident size of that process while it computed the stage."""
    peak_gpu_mb: float | None


Made = tuple[dict[str, Any], Mapping[str, Tensor]]
"""What computing a stage returns: facts (plain JSON values) and tensors."""


@dataclass(frozen=True, eq=False)
class Stage(Generic[Context]):
    """One step of the job; `compute(context, inputs)` is called if no artefact of this key is on disk."""

    group: str
    """The line of the timing table it counts for."""
    name: str
    """File name stem, unique together with the key."""
    compute: Callable[[Context, dict[str, Artefact]], Made]
    settings: Mapping[str, Any]
    """All that the result depends on, apart from the inputs, as plain JSON values."""
    inputs: Mapping[str, Stage[Context]] = field(default_factory=dict)
    cost: float = 0.0
    """Expected work, in any unit that is the same for all stages: it divides the progress bar."""

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that name the result."""
        depends = [
            _FORMAT,
            self.name,
            self.settings,
            {name: stage.key for name, stage in self.inputs.items()},
        ]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """Artefacts in one folder, which is made if it is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, stage: Stage[Any]) -> Artefact | None:
        """The artefact of a finished stage; None if there is none that can be read whole."""
        try:
            document = json.loads(self._path(stage, "json").read_text(encoding="utf-8"))
            tensors = load_state_dict(self._path(stage, "safetensors")) if document["tensors"] else {}
            cost = (document["seconds"], document["peak_rss_mb"], document["peak_gpu_mb"])
            return Artefact(document["facts"], tensors, *cost)
        except (OSError, ValueError, KeyError, TypeError, CheckpointError):
            return None

    def compute(self, stage: Stage[Context], context: Context, inputs: dict[str, Artefact]) -> Artefact:
        """Run a stage and keep what it made."""
        meter = Meter()
        facts, tensors = stage.compute(context, inputs)
        seconds, memory, gpu_memory = meter.read()
        if tensors:
            save_state_dict(tensors, self._path(stage, "safetensors"), overwrite=True)
        document = {
            "stage": stage.name,
            "settings": dict(stage.settings),
            "inputs": {name: f"{source.name}-{source.key}" for name, source in stage.inputs.items()},
            "seconds": seconds,
            "peak_rss_mb": memory,
            "peak_gpu_mb": gpu_memory,
            "facts": facts,
            "tensors": len(tensors),
        }
        write_text(self._path(stage, "json"), json.dumps(document, indent=1) + "\n")
        return Artefact(facts, tensors, seconds, memory, gpu_memory)

    def _path(self, stage: Stage[Any], suffix: str) -> Path:
        return self.folder / f"{stage.name}-{stage.key}.{suffix}"


class Meter:
    """Wall time and peak memory from its making to `read`."""

    def __init__(self) -> None:
        self._own_peak = _forget_peak()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()

    def read(self) -> tuple[float, float, float | None]:
        """Seconds, peak resident megabytes (10^6 bytes), and peak GPU megabytes where there is a GPU.

        Where the system cannot forget an earlier peak (other than Linux), the resident peak is that of the
        process.
        """
        seconds = time.perf_counter() - self._start
        gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
        return seconds, _peak_rss_bytes(self._own_peak) / 1e6, gpu


def _forget_peak() -> bool:
    """Ask Linux to start the process's peak resident size anew; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss_bytes(own_peak: bool) -> float:
    if own_peak:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * float(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
