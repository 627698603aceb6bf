"""Check and time the kernels on this machine's GPU: ``make gpu-check``, ``python tools/gpu_check.py [STEP ...]``.

Runs the operator tests on the CUDA and Triton backends, compute-sanitizer over every CUDA kernel, and the benchmarks;
goes on after a failure, prints a line a step at the end, and exits with 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", "-rf"]
SANITIZE = ["--error-exitcode", "1", "--target-processes", "application-only"]


def steps(out: Path) -> dict[str, list[str]]:
    """Name -> command."""
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if _has("xdist") else []
    sanitizer = _sanitizer()
    watched = [PYTHON, "-m", "tests.ops.run_kernels"]
    found = {
        "facts": [PYTHON, "-c", _FACTS],
        "tests": [*PYTEST, *workers, "tests/ops", "tests/gpu", "-k", "(cuda or triton or gpu) and not emulated"],
        "benchmarks": [PYTHON, "-m", "benchmarks", "--device", "cuda", "--json", str(out / "benchmarks_cuda.json")],
    }
    for tool in ("memcheck", "racecheck", "synccheck"):
        found[tool] = [sanitizer, "--tool", tool, *SANITIZE, *watched] if sanitizer else []
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="steps to run; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-check", help="where logs and figures go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = steps(options.out)
    unknown = set(options.steps) - table.keys()
    if unknown:
        parser.error(f"unknown step {sorted(unknown)[0]!r}; one of {', '.join(table)}")
    results = {name: _run(name, table[name], options.out) for name in options.steps or table}
    print("\n" + "\n".join(f"{name:12s} {result}" for name, result in results.items()))
    return int(any(result.startswith("FAILED") for result in results.values()))


def _run(name: str, command: list[str], out: Path) -> str:
    if not command:
        return "skipped: compute-sanitizer is not on the PATH"
    print(f"\n== {name}: {' '.join(command[:6])} ...", flush=True)
    start = time.monotonic()
    log = out / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            print(line, end="", flush=True)
    seconds = time.monotonic() - start
    verdict = "ok" if process.wait() == 0 else f"FAILED with {process.returncode}"
    return f"{verdict} in {seconds:.0f} s ({log})"


def _has(module: str) -> bool:
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0


def _sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


_FACTS = """
import torch
from taskarith_fast.ops._contract import registered
print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())
for op in registered():
    print(f"{op.name:28s} cuda: {op.absent('cuda') or 'yes':32s} triton: {op.absent('triton') or 'yes'}")
"""

if __name__ == "__main__":
    sys.exit(main())
