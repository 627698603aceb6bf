"""Grids: from a table with lists of values to all combinations, each tried on a toy before any work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from taskarith_fast.errors import ArgumentError, TaskarithError
from taskarith_fast.merging.methods import find_method, merge

MOST_POINTS = 1_000_000
_RANGE = {"start", "stop", "count"}

Point = dict[str, Any]


def axes_of(table: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    """Every key with its values: a list, a range ``{start, stop, count}``, or one value.

    Raises:
        ArgumentError: If a list is empty or says a value twice, or a range is not one.
    """
    axes = {}
    for name, value in table.items():
        values = _range(value, f"{where}.{name}") if isinstance(value, Mapping) else value
        axes[name] = values if isinstance(values, list) else [values]
        if not axes[name]:
            raise ArgumentError(f"{where}.{name} must hold at least one value, got none")
        for i, entry in enumerate(axes[name]):
            if entry in axes[name][:i]:
                raise ArgumentError(f"{where}.{name} must hold different values, got {entry!r} twice")
    if (count := math.prod(map(len, axes.values()))) > MOST_POINTS:
        raise ArgumentError(f"{where} must have at most {MOST_POINTS} combinations, got {count}")
    return axes


def expand(table: Mapping[str, Any], where: str) -> list[Point]:
    """All combinations, the last key varying fastest; errors as `axes_of`."""
    axes = axes_of(table, where)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def complete(method: str, parameters: Point, tasks: int, where: str) -> Point:
    """All parameters of a method, defaults included, once they are seen to work on a toy of so many models.

    Raises:
        ArgumentError: If the method or a parameter is not known, needs more than weights, or is out of its domain.
    """
    try:
        row = find_method(method, parameters)
        if row.needs != "weights only":
            raise ArgumentError(f"method {method!r} needs {row.needs}; a sweep merges weights only")
        merge(*_toy(tasks), method, **parameters)
    except TaskarithError as error:
        raise ArgumentError(f"{where}: {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        text = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
        raise ArgumentError(f"{where}: {method} refuses {text} ({str(error).splitlines()[0]})") from None
    return row.parameters | parameters


def subsets_of(tasks: Sequence[str], subsets: Sequence[Sequence[str]], sizes: Sequence[int]) -> list[tuple[str, ...]]:
    """The sets of tasks that are merged, each in the order of `tasks`: those given, all of given sizes, or one of all.

    Raises:
        ArgumentError: If a set is empty or names a task that is not there, or twice.
    """
    found = []
    for i, names in enumerate(subsets):
        for name in names:
            if name not in tasks:
                raise ArgumentError(f"subsets[{i}] must hold names among {', '.join(tasks)}; got {name!r}")
        if not names or len(set(names)) < len(names):
            raise ArgumentError(f"subsets[{i}] must hold different tasks, at least one, got {list(names)}")
        found.append(tuple(task for task in tasks if task in names))
    if sum(math.comb(len(tasks), size) for size in sizes) > MOST_POINTS:
        raise ArgumentError(f"subset_sizes must give at most {MOST_POINTS} sets of tasks, got more")
    for size in sizes:
        found += itertools.combinations(tasks, size)
    return list(dict.fromkeys(found)) or [tuple(tasks)]


def _range(value: Mapping[str, Any], where: str) -> list[float]:
    if value.keys() != _RANGE:
        raise ArgumentError(f"{where} must be a value, a list, or a range of start, stop and count; got {dict(value)}")
    start, stop, count = value["start"], value["stop"], value["count"]
    numbers = all(isinstance(v, (int, float)) and math.isfinite(v) for v in (start, stop))
    if not numbers or not isinstance(count, int) or not 1 <= count <= MOST_POINTS:
        raise ArgumentError(f"{where} must go from a number to a number in count steps, got {dict(value)}")
    # Rounded, so that 0.3 is written and hashed as 0.3, not as 0.30000000000000004.
    return [round(start + (stop - start) * i / max(count - 1, 1), 12) for i in range(count)]


def _toy(tasks: int) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A base and models of two small tensors, one of which every method takes for a matrix of a block."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"blocks.0.attn.weight": (4, 4), "blocks.0.attn.bias": (4,)}
    base, *models = (
        {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()} for _ in range(tasks + 1)
    )
    return base, models
