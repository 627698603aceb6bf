"""What it costs to import the package and to ask the command line for help."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

_ADDED = "import time; import torch; t = time.perf_counter(); import taskarith_fast; print(time.perf_counter() - t)"


def startup_times(runs: int = 5) -> dict[str, Any]:
    """Median seconds of the import beside torch's own, and of ``taskarith --help`` as a whole process."""
    added, shown = [], []
    for _ in range(runs):
        added.append(
            float(subprocess.check_output([sys.executable, "-c", _ADDED], text=True, stderr=subprocess.DEVNULL))
        )
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "taskarith_fast", "--help"], stdout=subprocess.DEVNULL, check=True)
        shown.append(time.perf_counter() - start)
    result = {"import_adds": statistics.median(added), "help": statistics.median(shown)}
    print("\nstartup")
    print(f"  import taskarith_fast adds {result['import_adds'] * 1e3:.1f} ms to import torch  (bar 150 ms)")
    print(f"  taskarith --help takes {result['help'] * 1e3:.0f} ms  (bar 400 ms)")
    return {"case": "startup", **result}
