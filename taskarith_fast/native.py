"""What was compiled, and whether it loads: shared libraries of operators, build facts, probes of this machine."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARY_DIR = Path(__file__).resolve().parent / "lib"
SCHEMAS_MARK = "taskarith schemas:\n"
"""Begins the text in a library that says for which operators it was built, see tools/write_schemas.py."""


def load_library(name: str, schemas: Mapping[str, str]) -> str | None:
    """Load ``libtaskarith_<name>.so`` (``cpu``, ``cuda`` or ``emulated``), if it was built for these operators.

    A kernel takes its arguments as the schema of its day had them, so a library of another day is not even opened; a
    warning says so.

    Args:
        name: The library's.
        schemas: Operator -> its schema.

    Returns:
        None if the library is loaded; otherwise the reason why not, in one line.
    """
    import torch

    path = LIBRARY_DIR / f"libtaskarith_{name}.so"
    if not path.exists():
        return f"libtaskarith_{name}.so was not built"
    if name == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if reason := stale(path, schemas):
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return reason
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"libtaskarith_{name}.so does not load: {str(error).splitlines()[0]}"
    return None


def stale(library: Path, schemas: Mapping[str, str]) -> str | None:
    """Why a library does not belong to operators of these schemas; None if it does. Operators it lacks do not count."""
    built = _schemas_of(library)
    changed = [name for name, schema in schemas.items() if built.get(name, schema) != schema]
    if built and not changed:
        return None
    what = f"{changed[0]} had another schema" if changed else "it names no schemas"
    return f"{library.name} was built from other sources ({what}): rebuild with pip install -e ."


def _schemas_of(library: Path) -> dict[str, str]:
    """Operator -> schema, as the file says: loading it would register its kernels."""
    _, found, text = library.read_bytes().partition(SCHEMAS_MARK.encode())
    lines = text.partition(b"\0")[0].decode(errors="replace").splitlines() if found else []
    return {name: bracket + rest for name, bracket, rest in (line.partition("(") for line in lines)}


def extension() -> Any | None:
    """The pybind11 module with build facts, CPU features and probes, or None if it was not built."""
    try:
        return importlib.import_module("taskarith_fast._native")
    except ImportError:
        return None


def build_facts() -> dict[str, str]:
    """Compiler, flags and date-free facts of the native build; empty if there is none."""
    module = extension()
    return dict(module.build_facts()) if module else {}


def cpu_features() -> list[str]:
    """Names of the instruction sets that the kernels may use here; empty without the native build."""
    module = extension()
    return list(module.cpu_features()) if module else []


def read_bandwidth(num_threads: int, repeats: int = 5) -> float:
    """Best measured bytes per second of reading nine 64 MiB arrays with `num_threads` threads."""
    module = extension()
    return float(module.read_bandwidth(num_threads, repeats)) if module else float("nan")


def fma_peak(num_threads: int, repeats: int = 5) -> float:
    """Best measured float32 FLOP per second of independent fused multiply-adds with `num_threads` threads."""
    module = extension()
    return float(module.fma_peak(num_threads, repeats)) if module else float("nan")
