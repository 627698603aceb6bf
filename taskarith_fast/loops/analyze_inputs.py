"""What an analysis works on: models, task vectors, masks, tasks and heads, read from files or handed in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.checkpoint import LazyState, load_state_dict
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.edits import EncoderEdits, LinearizedEdits
from taskarith_fast.loops.evaluate import BATCH_SIZE
from taskarith_fast.loops.merged_edits import MergedEdits
from taskarith_fast.loops.task_vector_files import VECTOR_KINDS
from taskarith_fast.masks import Masks
from taskarith_fast.progress import SILENT, Progress
from taskarith_fast.sparse_task_vector import SparseTaskVector
from taskarith_fast.task_vector import TaskVector

State = Mapping[str, Tensor]
AnyEdits = EncoderEdits | LinearizedEdits | MergedEdits


@dataclass(frozen=True)
class Inputs:
    """What an analysis may use; which fields it needs is in the table of kinds."""

    encoder: nn.Module | None = None
    """The encoder that the models are states of; it is copied where it is worked on."""
    base: State | None = None
    """The pre-trained state."""
    vectors: Sequence[State] = ()
    """Fine-tuned states, or task vectors."""
    labels: Sequence[str] = ()
    """A name for each of them."""
    masks: Mapping[str, Masks] = field(default_factory=dict)
    """Name -> masks."""
    tasks: Mapping[str, data.Task] = field(default_factory=dict)
    """Task name -> task."""
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    """Task name -> head."""
    split: str = "test"
    """Which images."""
    samples: int | None = None
    """Images of each task at most, drawn at random; None takes all."""
    seed: int = 0
    """Seed of the draw."""
    batch_size: int = BATCH_SIZE
    """Images a forward pass."""
    linearized: bool = False
    """Judge the encoder linearized at the base instead of the encoder itself."""
    progress: Progress = SILENT
    """Shows bars."""

    def splits(self, split: str | None = None) -> dict[str, data.Split]:
        """The images of every task, `samples` of them, in the order of the split."""
        return {name: self._drawn(task.splits[split or self.split]) for name, task in self.tasks.items()}

    def edits(self, split: str | None = None, vectors: Sequence[State] | None = None) -> AnyEdits:
        """The base edited along the task vectors."""
        kind = LinearizedEdits if self.linearized else EncoderEdits
        chosen = self.vectors if vectors is None else vectors
        with self.progress.stage("models"):
            return kind(self.its_encoder, self.theta_0, chosen, self.splits(split), self.heads, **self.options)

    def merged_edits(self, method: str, parameters: Mapping[str, Any], split: str | None = None) -> AnyEdits:
        """The models merged by a method; task arithmetic is the sum of the task vectors."""
        if method == "task_arithmetic" and not parameters:
            return self.edits(split)
        if self.linearized:
            raise ArgumentError(f"linearized models are merged by task_arithmetic alone, got method {method!r}")
        return MergedEdits(
            self.its_encoder, self.theta_0, self.states(), self.splits(split), self.heads, method=method,
            parameters=parameters, **self.options,
        )  # fmt: skip

    def states(self) -> list[State]:
        """The fine-tuned states."""
        return [_Moved(self.theta_0, v) if is_vector(v) else v for v in self.vectors]

    def deltas(self) -> list[State]:
        """The task vectors, with every floating tensor of the base."""
        base = {name: t for name, t in self.theta_0.items() if t.is_floating_point()}
        return [{n: v[n] if n in v else torch.zeros_like(t) for n, t in base.items()} if is_vector(v)
                else TaskVector.between(self.theta_0, v) for v in self.vectors]  # fmt: skip

    @property
    def theta_0(self) -> State:
        """The pre-trained state."""
        if self.base is None:
            raise ArgumentError("base must be given for this analysis, got None")
        return self.base

    @property
    def its_encoder(self) -> nn.Module:
        """The encoder."""
        if self.encoder is None:
            raise ArgumentError("encoder must be given for this analysis, got None")
        return self.encoder

    def copied_encoder(self) -> nn.Module:
        """A copy of the encoder to work on."""
        return copy.deepcopy(self.its_encoder)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of whatever runs the encoder."""
        return {"batch_size": self.batch_size}

    def _drawn(self, split: data.Split) -> data.Split:
        if self.samples is None or self.samples >= len(split):
            return split
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))
        return data.SubsetSplit(split, order[: self.samples].sort().values)


def is_vector(state: State) -> bool:
    """Whether these are deltas, not weights."""
    return isinstance(state, (TaskVector, SparseTaskVector))


def read_vector(path: Path) -> tuple[State, bool]:
    """Open a fine-tuned state, a task vector or a sparse one; True if it is one of linearized fine-tuning."""
    state = load_state_dict(path)
    metadata = state.metadata if isinstance(state, LazyState) else {}
    if metadata.get("taskarith") == "masks":
        raise CheckpointError(f"{path}: expected a fine-tuned state or a task vector, got masks; hand them to --masks")
    kind = VECTOR_KINDS.get(metadata.get("taskarith", ""))
    return (state if kind is None else kind(path)), "linearized" in metadata


class _Moved(Mapping[str, Tensor]):
    """base + delta, tensor by tensor when looked up."""

    def __init__(self, base: State, delta: State) -> None:
        for name in delta:
            if name not in base or base[name].shape != delta[name].shape:
                got = list(base[name].shape) if name in base else "no such tensor"
                raise CheckpointError(f"{name}: base must have shape {list(delta[name].shape)}, got {got}")
        self._base, self._delta = base, delta

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._base[name]
        return tensor + self._delta[name] if name in self._delta else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)
