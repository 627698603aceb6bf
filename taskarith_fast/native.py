"""What was compiled, and whether it loads: shared libraries of operators, build facts, probes of this machine."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

LIBRARY_DIR = Path(__file__).resolve().parent / "lib"


@functools.cache
def load_library(name: str) -> str | None:
    """Load ``libtaskarith_<name>.so`` (``cpu``, ``cuda`` or ``emulated``).

    Returns:
        None if the library is loaded; otherwise the reason why not, in one line.
    """
    import torch

    path = LIBRARY_DIR / f"libtaskarith_{name}.so"
    if not path.exists():
        return f"libtaskarith_{name}.so was not built"
    if name == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"libtaskarith_{name}.so does not load: {str(error).splitlines()[0]}"
    return None


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
