"""Tied tensors: several names for one tensor. A safetensors file holds it once and lists the other names.

The list is the metadata entry `taskarith_tied`, a JSON object: name -> the name that is in the file.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor

from taskarith_fast.errors import CheckpointError

TIED = "taskarith_tied"


def find_tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Find the names that are other names of a tensor: the same view of the same memory.

    Args:
        state: Name -> tensor.

    Returns:
        Name -> the first name of the same tensor; empty if nothing is tied. Views that only overlap are not
        tied.
    """
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, tensor in state.items():
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        view = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        if first.setdefault(view, name) != name:
            tied[name] = first[view]
    return tied


def write_tied(tied: Mapping[str, str]) -> dict[str, str]:
    """The metadata entry for the names that `find_tied` found; empty if there are none."""
    return {TIED: json.dumps(dict(tied), sort_keys=True)} if tied else {}


def read_tied(metadata: Mapping[str, str]) -> dict[str, str]:
    """The tied names that a file's metadata records.

    Raises:
        CheckpointError: If the entry is damaged.
    """
    if TIED not in metadata:
        return {}
    try:
        tied = json.loads(metadata[TIED])
    except (ValueError, RecursionError):
        tied = None
    if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
        raise CheckpointError(f"metadata {TIED} must be a JSON object of names")
    return tied


def check_tied(tied: Mapping[str, str], names: Container[str]) -> Mapping[str, str]:
    """The tied names, each checked to be new and to stand for one of `names`.

    Raises:
        CheckpointError: If one is not.
    """
    for name, first in tied.items():
        if name in names or first not in names:
            raise CheckpointError(f"{name} is recorded as tied to {first}, which is not in the file")
    return tied


def untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a safetensors file can hold: tensors that share no memory, and the other names of the tied ones.

    Args:
        state: Name -> tensor.

    Returns:
        The tensors under their first names, on the CPU and contiguous; the other names -> the first.
        Tensors that overlap in part are copied.
    """
    tied = find_tied(state)
    owners: set[int] = set()
    alone = {}
    for name, tensor in state.items():
        if name in tied:
            continue
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if storage in owners else tensor
        owners.add(storage)
    return alone, tied
