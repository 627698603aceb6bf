"""Compile the CUDA kernels for every architecture that is shipped: no warning, no spill, no change from the table.

    python tools/compile_everywhere.py [--write]

`make install` compiles for one architecture; this does it for all, in build/everywhere, with the settings of
build/native. Exit code 1 where the compiler warns or tools/ptxas_report.py complains; 0 with a reason without nvcc.
--write makes the table, tests/native/registers.json, anew.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE, BUILD = ROOT / "build/native", ROOT / "build/everywhere"
SETTINGS = ("Python_EXECUTABLE", "pybind11_DIR", "TORCH_INCLUDE_DIRS", "TORCH_LIBRARY_DIR")


def main() -> int:
    lines = (NATIVE / "CMakeCache.txt").read_text().splitlines()
    cache = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith(("#", "//")))
    known = {key.split(":")[0]: value for key, value in cache.items()}
    if known.get("TASKARITH_NVCC", "").endswith("NOTFOUND") or "TASKARITH_NVCC" not in known:
        print("skipped: no nvcc")
        return 0
    settings = [f"-D{name}={known[name]}" for name in SETTINGS]
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *settings]
    subprocess.check_call([*configure, "-DTASKARITH_CUDA=ON"], stdout=subprocess.DEVNULL)
    build = ["cmake", "--build", str(BUILD), "--target", "taskarith_cuda"]
    found = subprocess.run(build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    warnings = [line for line in found.stdout.splitlines() if "warning" in line.lower()]
    print("\n".join(warnings) if found.returncode == 0 else found.stdout[-6000:])
    report = [sys.executable, str(ROOT / "tools/ptxas_report.py"), str(BUILD / "libtaskarith_cuda.so"), *sys.argv[1:]]
    return int(found.returncode != 0 or bool(warnings) or subprocess.call(report) != 0)


if __name__ == "__main__":
    sys.exit(main())
