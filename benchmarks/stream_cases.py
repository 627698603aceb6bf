"""Merges of files: time against reading the inputs and against the same merge in memory; peak memory in a process.

``python -m benchmarks.stream_cases --method ties --tasks 2 8 20`` runs each merge in a process of its own and prints
seconds, processor seconds and peak resident memory, with and without hashing the inputs.
"""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.contest import Contest

_RUN = """
import json, sys, time
from benchmarks.stream_cases import peak_resident
from taskarith_fast.merging import merge_files
job = json.loads(sys.argv[1])
before = peak_resident()
start, cpu = time.perf_counter(), time.process_time()
merge_files(job["models"][0], job["models"][1:], job["output"], method=job["method"], overwrite=True,
            hash_inputs=job["hash"], memory=job["memory"])
print(json.dumps({"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "before_mb": before / 1e6,
                  "peak_mb": peak_resident() / 1e6}))
"""


def merge_files(method: str, tasks: int) -> Contest:
    """ViT-B/32 x `tasks`, files to file on one disk, page cache warm."""
    from safetensors.torch import load_file, save_file

    import taskarith_fast as ta

    models = _write_models(tasks)
    output = models[0].parent / "out.safetensors"

    def streamed(hash_inputs: bool) -> Any:
        return lambda: ta.merge_files(
            models[0], models[1:], output, method=method, overwrite=True, hash_inputs=hash_inputs
        )

    def in_memory() -> None:
        states = [load_file(path) for path in models]
        save_file(ta.merge(states[0], states[1:], method), output)

    return Contest(
        ours={"streamed": streamed(False), "streamed, inputs hashed": streamed(True)},
        baselines={
            "cat of the inputs": lambda: subprocess.run(
                f"cat {models[0].parent}/m*.safetensors > /dev/null", shell=True
            ),
            "load, merge in memory, save": in_memory,
        },
        bytes_moved=sum(path.stat().st_size for path in models) + models[0].stat().st_size,
    )


def peak_resident() -> int:
    """This program's high-water mark in bytes; getrusage's would be inherited from the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _write_models(tasks: int) -> list[Path]:
    """A base and eight models; more tasks repeat them. They are deleted when the process ends."""
    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp(prefix="taskarith-stream-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base, finetuned = shapes.models(shapes.vit_b32_shapes(), min(tasks, 8))
    paths = []
    for i, tensors in enumerate((base, *finetuned)):
        paths.append(folder / f"m{i}.safetensors")
        save_file({f"t{j:03d}": tensor.contiguous() for j, tensor in enumerate(tensors)}, paths[-1])
    return [paths[0], *(paths[1 + t % 8] for t in range(tasks))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="ties")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 8, 20])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory")
    args = parser.parse_args()
    models = _write_models(max(args.tasks))
    for _ in range(args.runs):
        for tasks in args.tasks:
            for hashed in (False, True):
                job = {"models": [str(p) for p in models[: tasks + 1]],
                       "output": str(models[0].parent / "out.safetensors"),
                       "method": args.method, "hash": hashed, "memory": args.memory}  # fmt: skip
                out = subprocess.check_output([sys.executable, "-c", _RUN, json.dumps(job)], text=True)
                found = {k: round(v, 2) for k, v in json.loads(out).items()}
                print(args.method, f"T={tasks}", "hashed" if hashed else "not hashed", found, flush=True)


if __name__ == "__main__":
    main()
