"""Registers, stack, spills and shared memory of every compiled CUDA kernel; exit code 1 if one spills.

    python tools/ptxas_report.py [taskarith_fast/lib/libtaskarith_cuda.so]

Reads the library with cuobjdump, from PATH, CUDA_HOME or Triton's wheel; needs no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LIBRARY = Path(__file__).resolve().parents[1] / "taskarith_fast" / "lib" / "libtaskarith_cuda.so"
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class Usage(NamedTuple):
    """What one kernel takes on one architecture; stack and local memory (bytes) are spills or arrays."""

    architecture: str
    kernel: str
    registers: int
    stack: int
    shared: int
    local: int


def cuobjdump() -> str | None:
    """The first cuobjdump found, or None."""
    folders = [Path(p) / "bin" for p in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if p]
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = (str(f / "cuobjdump") for f in folders if (f / "cuobjdump").exists())
    return shutil.which("cuobjdump") or next(found, None)


def demangle(name: str) -> str:
    """A kernel's name with its template arguments, without namespaces and parameters."""
    tool = shutil.which("c++filt")
    if tool is None:
        return name
    long = subprocess.check_output([tool, name], text=True).strip()
    bare = re.sub(r"taskarith::|\(anonymous namespace\)::|^void ", "", long)
    return re.sub(r"\([^()]*\)$", "", bare)


def usages(library: Path, tool: str) -> list[Usage]:
    """One entry a kernel and architecture, in the order of the library."""
    output = subprocess.check_output([tool, "-res-usage", str(library)], text=True, stderr=subprocess.STDOUT)
    found, architecture, kernel = [], "", ""
    for line in output.splitlines():
        if match := re.search(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.search(r"Function (\S+):", line):
            kernel = match[1]
        elif match := USAGE.search(line):
            registers, stack, shared, local = map(int, match.groups())
            found.append(Usage(architecture, demangle(kernel), registers, stack, shared, local))
    return found


def main() -> int:
    library, tool = Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY, cuobjdump()
    if tool is None or not library.exists():
        print(f"skipped: {'no cuobjdump' if tool is None else f'{library} was not built'}")
        return 0
    rows = usages(library, tool)
    for row in rows:
        print(f"{row.architecture:8} {row.registers:4} registers {row.stack:4} stack {row.local:4} local "
              f"{row.shared:6} shared  {row.kernel}")  # fmt: skip
    return int(any(row.stack or row.local for row in rows))


if __name__ == "__main__":
    sys.exit(main())
