"""What it costs to import the package and to ask the command line for help."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_ADDED = "import time; import torch; t = time.perf_counter(); import taskarith_fast; print(time.perf_counter() - t)"


def startup_times(runs: int = 5) -> dict[str, Any]:
    """Median seconds of the import beside torch's own, and of ``taskarith --help``, of a merge of one weight, and of
    ``import torch`` as whole processes."""
    added = []
    whole: dict[str, list[float]] = {"help": [], "merge": [], "import_torch": []}
    for _ in range(runs):
        added.append(
            float(subprocess.check_output([sys.executable, "-c", _ADDED], text=True, stderr=subprocess.DEVNULL))
        )
        with tempfile.TemporaryDirectory(prefix="taskarith-startup-") as folder:
            for name, command in _commands(Path(folder)).items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
                whole[name].append(time.perf_counter() - start)
    result = {"import_adds": statistics.median(added), **{k: statistics.median(v) for k, v in whole.items()}}
    print("\nstartup")
    print(f"  import taskarith_fast adds {result['import_adds'] * 1e3:.1f} ms to import torch  (bar 150 ms)")
    print(f"  taskarith --help takes {result['help'] * 1e3:.0f} ms  (bar 400 ms)")
    print(f"  taskarith merge of one weight takes {result['merge']:.2f} s, import torch {result['import_torch']:.2f} s")
    return {"case": "startup", **result}


def _commands(folder: Path) -> dict[str, list[str]]:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = folder / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    verb = ["-m", "taskarith_fast"]
    return {
        "help": [*verb, "--help"],
        "merge": [*verb, "merge", str(path), str(path), "-o", str(folder / "out.safetensors"), "--overwrite"],
        "import_torch": ["-c", "import torch"],
    }
