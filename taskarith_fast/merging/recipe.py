"""Recipes: a merge written down in TOML.

    base = "base.safetensors"
    finetuned = ["a.safetensors", "b.safetensors"]
    output = "merged"
    method = "ties"
    shard_size = "5GB"

    [parameters]
    density = 0.2

Relative paths, those of fishers and grams too, are taken from the recipe's own directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from taskarith_fast.errors import ArgumentError
from taskarith_fast.formats.toml_file import read_toml
from taskarith_fast.merging.methods import METHODS
from taskarith_fast.merging.plan import Plan, plan_merge

# Parameters that are paths, one a task.
PATH_PARAMETERS = {row.streaming.statistics.parameter for row in METHODS.values() if row.streaming.statistics}


class Recipe(BaseModel):
    """The arguments of ``merge_files``; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)

    base: str
    finetuned: list[str] = Field(min_length=1)
    output: str
    method: str = "task_arithmetic"
    parameters: dict[str, Any] = {}
    dtype: str | None = None
    shard_size: int | str | None = None
    memory: int | str | None = None
    device: str = "cpu"
    overwrite: bool = False
    hash_inputs: bool = True
    card: bool = True

    def arguments(self, folder: Path) -> dict[str, Any]:
        """Keyword arguments of ``merge_files``, paths taken from `folder`."""
        fields = self.model_dump(exclude={"base", "finetuned", "output", "parameters"})
        places = {"base": folder / self.base, "finetuned": [folder / p for p in self.finetuned]}
        statistics = {
            name: [folder / path for path in value]
            for name, value in self.parameters.items()
            if name in PATH_PARAMETERS and isinstance(value, list) and all(isinstance(path, str) for path in value)
        }
        output = str(folder / self.output) + _slash(self.output)
        return {**fields, **self.parameters, **statistics, **places, "output": output}


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a recipe into the keyword arguments of ``merge_files``.

    Raises:
        ArgumentError: If it is no TOML, lacks a key, or has one that is not known or of the wrong type.
    """
    path = Path(path)
    recipe = read_toml(path, Recipe, "recipe")
    both = Recipe.model_fields.keys() & recipe.parameters.keys()
    if both:
        raise ArgumentError(f"{path}: {sorted(both)[0]} is no parameter of a method; write it above [parameters]")
    return recipe.arguments(path.parent)


def check_recipe(path: str | os.PathLike[str]) -> Plan:
    """Plan the merge of a recipe from headers alone; its `problems` say all that is wrong with it.

    Raises:
        ArgumentError: If the recipe itself cannot be read.
    """
    arguments = read_recipe(path)
    for name in ("device", "card"):
        arguments.pop(name)
    return plan_merge(**arguments)


def _slash(output: str) -> str:
    return os.sep if output.endswith("/") else ""
