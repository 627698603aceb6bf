"""Registers, spills, shared memory and 128-bit accesses of every compiled CUDA kernel, against the committed table.

    python tools/ptxas_report.py [--write] [LIBRARY ...]

Reads libraries or cubins (by default taskarith_fast/lib/libtaskarith_cuda.so) with cuobjdump, from PATH, CUDA_HOME or
Triton's wheel; needs no GPU. Exit code 1 if a kernel spills or differs from tests/native/registers.json: in anything
if the compiler is the table's, otherwise only in having grown or lost its 128-bit accesses. --write makes that table
anew from libraries that hold every architecture: `python tools/compile_everywhere.py --write` makes one.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "taskarith_fast" / "lib" / "libtaskarith_cuda.so"
TABLE = ROOT / "tests" / "native" / "registers.json"
REWRITE = "after a change on purpose: python tools/compile_everywhere.py --write"
GROWTH = 8  # registers that a kernel may gain by another version of the compiler
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
COMPILER = re.compile(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)")
WIDE = re.compile(r"\b(LD|ST)G?\.[\w.]*128")  # of global memory, or of an address whose kind is not known


class Usage(NamedTuple):
    """What one kernel takes on one architecture; stack and local memory (bytes) are spills or arrays."""

    architecture: str
    source: str
    kernel: str
    registers: int
    stack: int
    shared: int
    local: int

    @property
    def name(self) -> str:
        return f"{self.source}: {self.kernel}"


def cuobjdump() -> str | None:
    """The first cuobjdump found, or None."""
    folders = [Path(p) / "bin" for p in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if p]
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = (str(f / "cuobjdump") for f in folders if (f / "cuobjdump").exists())
    return shutil.which("cuobjdump") or next(found, None)


def bare_name(demangled: str) -> str:
    """A function's name with its template arguments, without namespaces and parameters."""
    bare = re.sub(r"taskarith::|\(anonymous namespace\)::|^void ", "", demangled)
    return re.sub(r"\([^()]*\)$", "", bare)


@functools.cache
def demangle(name: str) -> str:
    tool = shutil.which("c++filt")
    return bare_name(subprocess.check_output([tool, name], text=True).strip()) if tool else name


def source_of(mangled: str) -> str:
    """The file of a kernel in an anonymous namespace, which nvcc names after it."""
    match = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]{8}_", mangled)
    return f"{match[1]}.cu" if match else ""


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
            found.append(Usage(architecture, source_of(kernel), demangle(kernel), registers, stack, shared, local))
    return found


def wide_accesses(library: Path, tool: str) -> dict[tuple[str, str], Counter[str]]:
    """(architecture, source: kernel) -> how many 128-bit LD and ST stand in its machine code."""
    path = f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # cuobjdump calls nvdisasm
    output = subprocess.check_output([tool, "-sass", str(library)], text=True, env={**os.environ, "PATH": path})
    found: dict[tuple[str, str], Counter[str]] = {}
    architecture, counts = "", Counter[str]()
    for line in output.splitlines():
        if match := re.search(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            name = f"{source_of(match[1])}: {demangle(match[1])}"
            counts = found[architecture, name] = Counter()
        elif match := WIDE.search(line):
            counts[match[1]] += 1
    return found


class Table(NamedTuple):
    """Version of the compiler; architecture -> kernel -> what `COLUMNS` says."""

    nvcc: str
    kernels: dict[str, dict[str, list[int]]]


COLUMNS = ("registers", "bytes of shared memory", "128-bit loads", "128-bit stores")
SLACK = (GROWTH, 1024)  # by another compiler; 128-bit accesses must not vanish


def measured(libraries: list[Path], tool: str) -> Table:
    kernels: dict[str, dict[str, list[int]]] = {}
    compilers = set()
    for library in libraries:
        compilers |= {version.decode() for version in COMPILER.findall(library.read_bytes())}
        wide = wide_accesses(library, tool)
        for row in usages(library, tool):
            counts = wide[row.architecture, row.name]
            kernels.setdefault(row.architecture, {})[row.name] = [row.registers, row.shared, counts["LD"], counts["ST"]]
    return Table(" and ".join(sorted(compilers)) or "unknown", {a: dict(sorted(kernels[a].items())) for a in kernels})


def spills(libraries: list[Path], tool: str) -> list[str]:
    rows = (row for library in libraries for row in usages(library, tool) if row.stack or row.local)
    return [f"{row.architecture} {row.name}: {row.stack} bytes of stack, {row.local} local" for row in rows]


def complaints(now: Table, table: Table) -> list[str]:
    """How the kernels differ from the table, one line each; architectures not in the table are left."""
    found = []
    for architecture in now.kernels.keys() & table.kernels.keys():
        rows, known = now.kernels[architecture], table.kernels[architecture]
        found += [f"{architecture} {name}: not in the table" for name in rows.keys() - known.keys()]
        found += [f"{architecture} {name}: in the table, not compiled" for name in known.keys() - rows.keys()]
        for name in rows.keys() & known.keys():
            worse = [n > k + slack for n, k, slack in zip(rows[name], known[name], SLACK, strict=False)]
            worse += [n == 0 and k > 0 for n, k in zip(rows[name][2:], known[name][2:], strict=True)]
            for what, n, k, bad in zip(COLUMNS, rows[name], known[name], worse, strict=True):
                if bad or (n != k and now.nvcc == table.nvcc):
                    found.append(f"{architecture} {name}: {n} {what}, {k} in the table")
    return sorted(found)


def read_table() -> Table:
    return Table(**json.loads(TABLE.read_text()))


def write(table: Table) -> None:
    rows = {a: [f"      {json.dumps(n)}: {json.dumps(r)}" for n, r in ks.items()] for a, ks in table.kernels.items()}
    parts = [f'    "{a}": {{\n' + ",\n".join(lines) + "\n    }" for a, lines in rows.items()]
    head = f'{{\n  "nvcc": {json.dumps(table.nvcc)},\n  "kernels": {{\n'
    TABLE.write_text(head + ",\n".join(parts) + "\n  }\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", type=Path, default=[LIBRARY])
    parser.add_argument("--write", action="store_true", help="make the table anew")
    options, tool = parser.parse_args(), cuobjdump()
    missing = [library for library in options.libraries if not library.exists()]
    if tool is None or missing:
        print(f"skipped: {'no cuobjdump' if tool is None else f'{missing[0]} was not built'}")
        return 0
    now, table = measured(options.libraries, tool), read_table()
    for architecture, rows in now.kernels.items():
        for name, (registers, shared, loads, stores) in rows.items():
            wide = f"{loads:3} wide loads {stores:3} wide stores"
            print(f"{architecture:8} {registers:4} registers {shared:6} shared {wide}  {name}")
    problems = spills(options.libraries, tool)
    if not options.write:
        problems += complaints(now, table)
    elif absent := sorted(table.kernels.keys() - now.kernels.keys()):
        problems.append(f"the table is left as it is: no kernel for {', '.join(absent)} here; {REWRITE}")
    else:
        write(now)
    print("\n".join([*problems, REWRITE] if problems else [f"{len(now.kernels)} architectures: no spill"]))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
