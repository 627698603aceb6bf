"""Peak memory of merges of files by the number of tasks, every method, each merge in a process of its own.

    python -m benchmarks.stream_memory                                   # vit_s32, every method, 2 and 20 tasks
    python -m benchmarks.stream_memory --model vit_b32 --method ties cart --tasks 2 8 20

Printed are seconds, processor seconds, peak resident memory, and its ratio to that at the fewest tasks. A method that
needs whole matrices (cart, regmean) may take T of the largest besides; `beyond` is the ratio without them.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import shapes

_RUN = """
import json, sys, time
from benchmarks.clock import peak_resident
from taskarith_fast.merging import merge_files
job = json.loads(sys.argv[1])
start, cpu = time.perf_counter(), time.process_time()
merge_files(job["models"][0], job["models"][1:], job["output"], method=job["method"], overwrite=True,
            hash_inputs=job["hash"], memory=job["memory"], **job["parameters"])
print(json.dumps({"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu,
                  "peak_mb": peak_resident() / 1e6}))
"""
_DISTINCT = 4  # models on disk; more tasks repeat them
_WHOLE = ("cart", "regmean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(shapes.MODELS), default="vit_s32")
    parser.add_argument("--method", nargs="+", default=None, help="all by default")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--memory", help="the budget for buffers")
    parser.add_argument("--no-hash", action="store_true")
    args = parser.parse_args()
    from taskarith_fast.merging import METHODS

    layers = shapes.MODELS[args.model]()
    with tempfile.TemporaryDirectory(prefix="taskarith-stream-") as folder:
        shapes.write_models(folder, args.model, str(_DISTINCT))
        models = [str(Path(folder) / f"m{t}.safetensors") for t in range(_DISTINCT + 1)]
        for method in args.method or METHODS:
            parameters = _write_statistics(Path(folder), layers, METHODS[method].streaming.statistics)
            first = None
            for tasks in args.tasks * args.runs:
                job = {"models": _repeat(models, tasks), "output": str(Path(folder) / "out.safetensors"),
                       "method": method, "hash": not args.no_hash, "memory": args.memory,
                       "parameters": {k: _repeat(["", *v], tasks)[1:] for k, v in parameters.items()}}  # fmt: skip
                found = json.loads(subprocess.check_output([sys.executable, "-c", _RUN, json.dumps(job)], text=True))
                first = first or found["peak_mb"]
                text = "seconds {seconds:7.2f}  cpu {cpu:7.2f}  peak {peak_mb:7.0f} MB".format(**found)
                beyond = ""
                if method in _WHOLE:
                    extra = tasks * _largest(layers, bool(parameters)) / 1e6
                    beyond = f"  beyond {(found['peak_mb'] - extra) / first:.3f}"
                print(f"{method:22s} T={tasks:<3d} {text}  ratio {found['peak_mb'] / first:.3f}{beyond}", flush=True)


def _largest(layers: Mapping[str, tuple[int, ...]], grams: bool) -> int:
    """Bytes of the largest matrix of a task, with its Gram matrix where there is one."""
    return 4 * max(math.prod(s) + (math.prod(s[1:]) ** 2 if grams else 0) for s in layers.values() if len(s) == 2)


def _repeat(models: list[str], tasks: int) -> list[str]:
    return [models[0], *(models[1 + t % (len(models) - 1)] for t in range(tasks))]


def _write_statistics(folder: Path, layers: Mapping[str, tuple[int, ...]], kind: Any) -> dict[str, list[str]]:
    """Positive Fishers, or Gram matrices of as many inputs as they have sides."""
    import torch
    from safetensors.torch import save_file

    if kind is None:
        return {}
    generator = torch.Generator().manual_seed(1)
    paths = []
    for t in range(_DISTINCT):
        made = {}
        for name, shape in layers.items():
            sides = kind.shape(shape)
            if sides is None or (kind.whole and (len(shape) != 2 or "block" not in name)):
                continue
            x = torch.randn(sides, generator=generator)
            made[name] = x.T @ x / len(x) if kind.whole else x.square_()
        paths.append(str(folder / f"{kind.parameter}{t}.safetensors"))
        save_file(made, paths[-1])
    return {kind.parameter: paths}


if __name__ == "__main__":
    main()
