"""What a result was computed on and with; nothing that names a machine or a person."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from taskarith_fast import __version__, native
from taskarith_fast.ops._contract import load_library
from taskarith_fast.ops.linear import resolved_linear_route

_PACKAGES = ("torch", "numpy", "safetensors", "matplotlib", "pydantic")


def versions() -> dict[str, str]:
    """Versions of this package, of Python, and of the libraries that numbers depend on."""
    found = {"taskarith_fast": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def machine_facts(device: str) -> dict[str, str]:
    """Processor, cores, memory, threads, and what runs the arithmetic; `device` is "cpu" or "cuda"."""
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(_cores()),
        "memory": _memory(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "dense float32 layers": resolved_linear_route(),
        "compiled kernels": "none, PyTorch references" if load_library("cpu") else "C++",
    }
    features = native.cpu_features()
    return facts | ({"instruction sets": ", ".join(features)} if features else {})


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (ValueError, OSError, AttributeError):
        return "unknown"
