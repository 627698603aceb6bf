"""taskarith_fast: edit vision transformers by arithmetic on their weights, fast and exactly.

The public names are those of ``__all__``; each is imported when first used, so that ``import taskarith_fast`` costs
next to nothing and never fails for lack of a compiler, a GPU or Triton.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "adamerge": "taskarith_fast.loops.adamerge",
    "load_state_dict": "taskarith_fast.checkpoint",
    "save_state_dict": "taskarith_fast.checkpoint",
    "Masks": "taskarith_fast.masks",
    "SparseAdamW": "taskarith_fast.optim",
    "SparseSGD": "taskarith_fast.optim",
    "TaskVector": "taskarith_fast.task_vector",
    "SparseTaskVector": "taskarith_fast.sparse_task_vector",
    "merge": "taskarith_fast.merging",
    "merge_files": "taskarith_fast.merging",
    "merge_methods": "taskarith_fast.merging",
    "merge_per_task": "taskarith_fast.merging",
    "merge_task_vectors": "taskarith_fast.merging",
    "plan_merge": "taskarith_fast.merging.plan",
    "calibrate": "taskarith_fast.loops.calibrate",
    "convert_file": "taskarith_fast.formats.conversion",
    "convert_names": "taskarith_fast.formats.convert",
    "inspect_file": "taskarith_fast.formats.inspection",
    "fisher_diagonal": "taskarith_fast.loops.fisher",
    "linearize": "taskarith_fast.tangent",
    "TangentFeatures": "taskarith_fast.tangent",
    "EncoderEdits": "taskarith_fast.loops.edits",
    "LinearizedEdits": "taskarith_fast.loops.edits",
    "analysis_kinds": "taskarith_fast.loops.analyze",
    "MergedEdits": "taskarith_fast.loops.merged_edits",
    "load_encoder": "taskarith_fast.models",
    "zero_shot_head": "taskarith_fast.models",
    "gram_matrices": "taskarith_fast.loops.grams",
    "load_tasks": "taskarith_fast.data",
    "sweep": "taskarith_fast.loops.sweep.run",
    "TaskarithError": "taskarith_fast.errors",
}
_MODULES = ("analysis", "data", "errors", "loops", "models", "native", "ops", "tangent")

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"taskarith_fast.{name}")
    else:
        raise AttributeError(f"module 'taskarith_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
