"""Merges of task vectors that give a task vector: those of linearized models, which are no differences of states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.methods import merge
from taskarith_fast.task_vector import TaskVector


def merge_task_vectors(
    taus: Sequence[Mapping[str, Tensor]], method: str = "task_arithmetic", **parameters: Any
) -> TaskVector:
    """Merge task vectors by the method that would merge the models they lead to.

    What a method does with theta_0 + tau_t it does here with tau_t, about 0 in place of theta_0. So every method that
    knows deltas and means has a meaning for linearized models: its result is one more tau.

    Args:
        taus: T task vectors, name -> delta, dense or sparse; a tensor that one lacks is zero there.
        method: A name from ``merge_methods()``.
        **parameters: As ``merge``'s; statistics such as fishers belong to the same names.

    Returns:
        The merged task vector, with the names of all.

    Raises:
        ArgumentError: As ``merge``, or if there is no task vector.
        CheckpointError: As ``merge``.
    """
    if not taus:
        raise ArgumentError("taus must hold at least one task vector, got none")
    zeros = {name: torch.zeros_like(delta) for tau in taus for name, delta in tau.items()}
    return TaskVector(merge(zeros, [{**zeros, **dict(tau)} for tau in taus], method, **parameters))
