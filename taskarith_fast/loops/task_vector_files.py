"""Task vectors in files, as the command line writes and evaluates them: of linearized fine-tuning, and any other.

A file of linearized fine-tuning says so ("linearized" in its metadata) and which encoder theta_0 is, by its hash: tau
means nothing to another one, and as weights to the ordinary encoder something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.checkpoint import LazyState, load_state_dict
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.loops.evaluate import Evaluation, evaluate, load_state
from taskarith_fast.loops.linearized import LinearizedEvaluator
from taskarith_fast.loops.resume import fingerprint
from taskarith_fast.sparse_task_vector import SparseTaskVector
from taskarith_fast.task_vector import TaskVector

Vector = TaskVector | SparseTaskVector

VECTOR_KINDS: dict[str, Callable[[Path], Vector]] = {
    "task_vector": TaskVector.load,
    "sparse_task_vector": SparseTaskVector.load,
}
"""What a file of a task vector says it is -> its reader."""


def save_linearized(
    tau: TaskVector, encoder: nn.Module, output: Path, record: Mapping[str, Any], *, sparse: bool, overwrite: bool
) -> None:
    """Write what a linearized recipe trained.

    Args:
        tau: The tangents.
        encoder: The expansion point.
        output: Destination.
        record: What is to be kept beside them.
        sparse: Write the entries that are not zero, as where there were masks.
        overwrite: Replace an existing file.
    """
    vector: Vector = tau
    if sparse:
        vector = SparseTaskVector.between({name: torch.zeros_like(delta) for name, delta in tau.items()}, tau)
    metadata = {"linearized": fingerprint(encoder.state_dict()), "record": json.dumps(dict(record))}
    vector.save(output, overwrite=overwrite, metadata=metadata)


def open_states(
    encoder: nn.Module, heads: Mapping[str, nn.Module], splits: Mapping[str, data.Split], paths: Sequence[Path], *,
    scale: float = 1.0, linearized: bool = False,
) -> Callable[[str], Evaluation]:  # fmt: skip
    """Make ready to evaluate what files hold: one state of the encoder, or task vectors, which are added to it.

    Args:
        encoder: The pre-trained encoder; it may be overwritten.
        heads: Task name -> head.
        splits: Task name -> images.
        paths: The files; none takes the encoder as it is.
        scale: Factor of task vectors, and, if `linearized`, of the state minus the encoder's.
        linearized: Evaluate the linearized encoder there, whatever the files are (post hoc). Task vectors of
            linearized fine-tuning are evaluated so by themselves.

    Returns:
        Task name -> its evaluation.

    Raises:
        ArgumentError: If task vectors of linearized and of ordinary fine-tuning are mixed, a state is not alone, or
            `scale` is given for one.
        CheckpointError: If a file does not belong to the encoder.
    """
    found = [(path, load_state_dict(path)) for path in paths]
    vectors = [VECTOR_KINDS[kind](path) for path, state in found if (kind := _kind(state)) in VECTOR_KINDS]
    if len(vectors) < len(found) and (len(found) > 1 or (scale != 1 and not linearized)):
        raise ArgumentError(f"state must be one file, at scale 1, unless task vectors are added; got {len(found)}")
    tangents = [_is_linearized(path, vector, encoder) for (path, _), vector in zip(found, vectors, strict=False)]
    if any(tangents) and not (all(tangents) or linearized):
        raise ArgumentError(
            "states must not mix task vectors of linearized and of ordinary fine-tuning; --linearized evaluates the "
            "linearized encoder for all"
        )
    state = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    if found and (linearized or any(tangents)):
        taus = vectors or [TaskVector.between(state, dict(end)) for _, end in found]
        evaluator = LinearizedEvaluator(encoder, heads, splits, taus)
        return lambda name: evaluator.evaluate(name, [scale] * len(taus))
    for vector in vectors:
        state = vector.apply(state, scale=scale)
    load_state(encoder, found[0][1] if found and not vectors else state)
    return lambda name: evaluate(encoder, heads[name], splits[name])


def _kind(state: Mapping[str, Tensor]) -> str:
    return state.metadata.get("taskarith", "") if isinstance(state, LazyState) else ""


def _is_linearized(path: Path, vector: Vector, encoder: nn.Module) -> bool:
    """Whether a task vector is of linearized fine-tuning, then of this encoder."""
    start = vector.metadata.get("linearized")
    if start is not None and start != fingerprint(encoder.state_dict()):
        raise CheckpointError(f"{path}: was trained in the tangent space of another encoder; give that one's --encoder")
    return start is not None
