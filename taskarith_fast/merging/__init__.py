"""Merge methods: one pure function each, and the table that names them."""

from typing import Any

from taskarith_fast.merging.files import merge_files
from taskarith_fast.merging.methods import METHODS, merge, merge_methods, merge_per_task
from taskarith_fast.merging.plan import Plan, plan_merge
from taskarith_fast.merging.task_vectors import merge_task_vectors

__all__ = [
    "METHODS",
    "Plan",
    "check_recipe",
    "merge",
    "merge_files",
    "merge_methods",
    "merge_per_task",
    "merge_task_vectors",
    "plan_merge",
    "read_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in ("check_recipe", "read_recipe"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from taskarith_fast.merging import recipe  # late: it brings pydantic, which a merge without a recipe does not need

    return getattr(recipe, name)
