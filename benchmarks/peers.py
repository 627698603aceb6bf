"""TIES from files to a file, by this package and by its peers, each in an environment of its own.

    python -m benchmarks.peers --install              # once: mergekit, fusion-bench, sd-mecha from PyPI (about 20 GB)
    python -m benchmarks.peers                        # eight ViT-B/32 image towers, 87.8 M float32 weights each
    python -m benchmarks.peers --model vit_l14 --tasks 8 --only taskarith_fast mergekit sd_mecha
    python -m benchmarks.peers --model t5_large --distinct 4 --only taskarith_fast mergekit   # 21 GB of disk
    python -m benchmarks.peers --model vit_l14 --tasks 2 --only taskarith_fast fusion_bench   # 8 tasks need over 60 GB

Every run is a process of its own, from its start to its end; printed are seconds, the peak resident memory, and the
share of weights that come out different from ours under the same rules. This driver imports nothing heavy, because a
child's peak includes what its parent held when it was started.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
DENSITY, SCALE = 0.2, 1.0
_MODELS = ("vit_ti32", "vit_s32", "vit_b32", "vit_l14", "t5_tiny", "t5_large")  # NOTE: keep in step with shapes.MODELS


class FailedError(Exception):
    """A run that gave no result, and why."""


@dataclass(frozen=True)
class Peer:
    """A package, and how its counting rules are called here.

    package: What pip installs; None for this one.
    rules: Parameters of our ``ties`` that mean the same.
    """

    package: str | None
    rules: tuple[str, ...]


PEERS = {
    "taskarith_fast": Peer(None, ()),
    "mergekit": Peer("mergekit==0.1.5", ("scope=tensor", "zero_sign=plus")),
    "fusion_bench": Peer("fusion-bench==0.2.33", ("count_rule=official",)),
    "sd_mecha": Peer("sd-mecha==1.1.8", ("scope=tensor", "elect=count", "zero_sign=zero", "count_rule=official")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make the peers' environments and stop")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"), help="where they are")
    parser.add_argument("--model", choices=_MODELS, default="vit_b32")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--distinct", type=int, help="models on disk; more tasks are hard links to them")
    parser.add_argument("--runs", type=int, default=1, help="rounds, interleaved; medians are printed")
    parser.add_argument("--only", nargs="+", choices=tuple(PEERS), default=list(PEERS))
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if options.install:
        for name in options.only:
            install(name, options.environments)
        return
    with tempfile.TemporaryDirectory(prefix="taskarith-peers-") as folder:
        found = compete(Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def install(name: str, environments: Path) -> None:
    """A virtual environment with one peer in it."""
    package = PEERS[name].package
    if package is None:
        return
    subprocess.check_call([sys.executable, "-m", "venv", str(environments / name)])
    # sd-mecha leaves torch to its user.
    subprocess.check_call([str(environments / name / "bin" / "pip"), "install", "-q", package, "torch"])


def compete(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run every peer `runs` times and print a line for each."""
    make = "from benchmarks.shapes import write_models; import sys; write_models(*sys.argv[1:])"
    distinct = options.tasks if options.distinct is None else max(options.distinct, 1)
    subprocess.check_call([sys.executable, "-c", make, str(folder), options.model, str(options.tasks), str(distinct)])
    os.sync()  # what is still to be written would slow whoever runs first
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in options.only}
    apart = {}
    for _ in range(options.runs):
        for name in options.only:
            try:
                taken[name].append(_timed(_command(name, folder, options), folder / "out"))
            except FailedError as error:
                print(f"{name:16s} {error}", flush=True)
                continue
            if name not in apart:
                apart[name] = _difference(name, folder, options)
    found: dict[str, dict[str, float]] = {}
    for name, runs in taken.items():
        if not runs:
            continue
        found[name] = {
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "peak_mb": max(peak for _, peak in runs),
            "difference": apart[name],
        }
        ratio = found[name]["seconds"] / found.get("taskarith_fast", found[name])["seconds"]
        text = "seconds {seconds:8.2f}  peak {peak_mb:7.0f} MB  different {difference:.1e}"
        print(f"{name:16s} {text.format(**found[name])}  {ratio:6.1f}x our time", flush=True)
    return found


def _command(name: str, folder: Path, options: argparse.Namespace) -> list[str]:
    models = [str(folder / f"m{t}.safetensors") for t in range(options.tasks + 1)]
    output = folder / "out" / name
    if name == "taskarith_fast":
        return _ours(models, output.with_suffix(".safetensors"), ())
    python = options.environments / name / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{name} is not installed; run python -m benchmarks.peers --install --only {name}")
    return [str(python), str(FOLDER / "peer_jobs" / f"run_{name}.py"), str(output), str(DENSITY), str(SCALE), *models]


def _ours(models: list[str], output: Path, rules: tuple[str, ...]) -> list[str]:
    settings = [word for rule in (f"density={DENSITY}", f"scale={SCALE}", *rules) for word in ("-p", rule)]
    job = ["-m", "taskarith_fast", "merge", *models, "-o", str(output), "-m", "ties", "--overwrite", *settings]
    return [sys.executable, *job]


def _timed(command: list[str], output: Path) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a process; its messages are shown only if it fails."""
    output.mkdir(exist_ok=True)
    for old in output.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == -signal.SIGKILL:
            raise FailedError(f"killed after {seconds:.0f} s at {usage.ru_maxrss / 1e6:.1f} GB: out of memory")
        if process.returncode:
            log.seek(0)
            raise FailedError(f"exit code {process.returncode}: {log.read().decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def _difference(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Share of the weights in ``out`` that differ from ours under the peer's rules."""
    models = [str(folder / f"m{t}.safetensors") for t in range(options.tasks + 1)]
    ours = folder / "ours.safetensors"
    subprocess.check_call(_ours(models, ours, PEERS[name].rules), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    code = "from benchmarks.shapes import print_difference; import sys; print_difference(*sys.argv[1:])"
    command = [sys.executable, "-c", code, models[0], str(ours), str(folder / "out")]
    return float(subprocess.check_output(command, text=True))


if __name__ == "__main__":
    main()
