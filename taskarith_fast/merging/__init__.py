"""Merge methods: one pure function each, and the table that names them."""

from taskarith_fast.merging.files import merge_files
from taskarith_fast.merging.methods import METHODS, merge, merge_methods, merge_per_task

__all__ = ["METHODS", "merge", "merge_files", "merge_methods", "merge_per_task"]
