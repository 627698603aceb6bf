"""Tied tensors: several names for one tensor. A safetensors file holds it once and its metadata name the others.

The metadata entry `taskarith_tied` is a JSON object: name -> the name that is in the checkpoint. Beside it stands an
entry for each name, as safetensors' own `save_model` writes and leaves it at: the name -> the one in the file.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from typing import Any

from torch import Tensor

from taskarith_fast.errors import CheckpointError

TIED = "taskarith_tied"
_OWN_KEYS = ("format", "taskarith")  # never a tensor's name, whatever they say


def find_tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Find the names that are other names of a tensor: the same view of the same memory.

    Args:
        state: Name -> tensor.

    Returns:
        Name -> the first name of the same tensor; empty if nothing is tied. Views that only overlap are not
        tied.
    """
    first: dict[tuple[Any, ...], tuple[str, Tensor]] = {}  # the tensor too, lest its memory be given to the next one
    tied = {}
    for name, tensor in state.items():
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        view = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        own, _ = first.setdefault(view, (name, tensor))
        if own != name:
            tied[name] = own
    return tied


def write_tied(tied: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` and the record of the names that `find_tied` found."""
    return {**tied, **metadata, TIED: json.dumps(dict(tied), sort_keys=True)} if tied else dict(metadata)


def read_tied(metadata: Iterable[Mapping[str, str]], names: Container[str]) -> dict[str, str]:
    """The tied names that the metadata of a checkpoint's files record.

    Args:
        metadata: Of each file.
        names: The tensors in all of them.

    Returns:
        Other name -> the one of `names` that it stands for. Of a file without `taskarith_tied`, the entries that call
        one of `names` by a new name.

    Raises:
        CheckpointError: If a record is damaged, two differ, or one gives a tensor's name to another.
    """
    tied: dict[str, str] = {}
    for one in metadata:
        for name, first in (_record(one[TIED]) if TIED in one else _bare_entries(one, names)).items():
            if name in names or first not in names:
                raise CheckpointError(f"{name} is recorded as tied to {first}, which is not in the file")
            if tied.setdefault(name, first) != first:
                raise CheckpointError(f"{name} is recorded as tied to {tied[name]} and to {first}")
    return tied


def _record(text: str) -> dict[str, str]:
    try:
        tied = json.loads(text)
    except (ValueError, RecursionError):
        tied = None
    if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
        raise CheckpointError(f"metadata {TIED} must be a JSON object of names")
    return tied


def _bare_entries(metadata: Mapping[str, str], names: Container[str]) -> dict[str, str]:
    return {k: v for k, v in metadata.items() if v in names and k not in names and k not in _OWN_KEYS}


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
