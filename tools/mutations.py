"""Break the kernels on purpose, one change at a time: the operators' tests have to notice every one.

    python tools/mutations.py [--list] [--quick] [--only WORD ...] [--jobs N] [--no-baseline]

Each mutant of tests/native/mutants.py is made in a temporary copy of the tree. A CUDA source is compiled there by
itself for execution on the CPU, a Triton kernel runs in Triton's interpreter; then the tests of its operator run until
one fails. First they have to pass without a change. Prints a table; exit code 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.native.emulated import compile_emulated, missing_tools, precompile_torch  # noqa: E402
from tests.native.mutants import MUTANTS, Mutant  # noqa: E402

PROCESSES = multiprocessing.get_context("forkserver")  # its children have torch imported, but not Triton
PROCESSES.set_forkserver_preload(["torch", "pytest"])
FLAGS = ["-O1", "-w"]
LIMIT, INTERPRETED_LIMIT = 60, 200  # seconds of one processor; a mutant that hangs is noticed, too
CUDA_TESTS = ["tests/ops/test_contract.py", "tests/ops/test_cuda_kernels.py", "tests/ops/test_sparse_steps.py"]
CUDA_TESTS += ["tests/native/test_emulation.py"]


class Verdict(NamedTuple):
    """What the tests said: the first one that failed, or why there is none."""

    caught: bool
    reason: str


def copy_tree(target: Path) -> None:
    """What the operators' tests need, without compiled operators for the CUDA emulation."""
    unwanted = shutil.ignore_patterns("lib", "pack", "__pycache__", "*.so")
    for name in ("taskarith_fast", "csrc", "kernels", "benchmarks", "tests", "tools"):
        shutil.copytree(ROOT / name, target / name, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", target)
    (target / "taskarith_fast/kernels").symlink_to("../kernels")
    (target / "taskarith_fast/lib").mkdir()
    (target / "taskarith_fast/lib/libtaskarith_cpu.so").symlink_to(ROOT / "taskarith_fast/lib/libtaskarith_cpu.so")


def apply(mutant: Mutant, tree: Path) -> None:
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} places {mutant.old!r}, not one")
    path.write_text(text.replace(mutant.old, mutant.new))


def limit_of(environment: dict[str, str]) -> int:
    return INTERPRETED_LIMIT if "TRITON_INTERPRET" in environment else LIMIT


def pytest_in(tree: Path, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Run pytest on the copy, in a process that has imported torch but nothing of this repository that is used."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "tools", "taskarith_fast")]:
        del sys.modules[name]
    limit = limit_of(environment)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    os.environ.update(environment)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import pytest

    sys.exit(pytest.main(arguments))


def run_tests(mutant: Mutant, tree: Path, flags: list[str]) -> Verdict:
    """Run the operator's tests in the copy until one fails."""
    environment = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if mutant.triton:
        environment["TRITON_INTERPRET"] = "1"
        files, chosen = CUDA_TESTS[:1], f"{mutant.op}-triton and values and not chunk"
    else:
        library = tree / "taskarith_fast/lib/libtaskarith_emulated.so"
        compile_emulated([tree / f"csrc/ops/cuda/{mutant.source}.cu"], library, tree / "csrc", flags)
        own = f"[{mutant.op}] or [{mutant.op}- or test_{mutant.op}_"  # not the operators whose names begin like its
        beyond = f"(test_cuda_kernels and (touch_nothing or {own})) or (test_emulation and {mutant.op})"
        files, chosen = CUDA_TESTS, f"({mutant.op}-cuda_emulated and values) or {beyond} {mutant.tests}"
    log = tree / "pytest.log"
    arguments = ["-x", "-rf", "-p", "no:cacheprovider", "--tb=line", *files, "-k", chosen]
    process = PROCESSES.Process(target=pytest_in, args=(tree, arguments, environment, log))
    process.start()
    process.join()
    if process.exitcode == -signal.SIGXCPU:
        return Verdict(True, f"hangs: {limit_of(environment)} s of a processor")
    output = log.read_text() if log.exists() else ""
    failed = re.search(r"^FAILED \S*/(\S+::.*)$", output, re.MULTILINE)
    if process.exitcode == 1 and failed:
        return Verdict(True, failed[1])
    if process.exitcode < 0:
        return Verdict(True, f"killed by signal {-process.exitcode}")
    if process.exitcode == 0 and re.search(r"\d+ passed", output):
        return Verdict(False, output.strip().splitlines()[-1])
    raise SystemExit(f"{mutant.name}: the tests did not run: {output[-3000:]}")


def judge(mutant: Mutant, flags: list[str], changed: bool = True) -> Verdict:
    """Whether the tests notice `mutant`, or, unchanged, whether they pass."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        if changed:
            apply(mutant, tree)
        return run_tests(mutant, tree, flags)


def chosen_mutants(words: Iterable[str], quick: bool) -> list[Mutant]:
    return [m for m in MUTANTS if (m.quick or not quick) and all(w in f"{m.name} {m.file} {m.op}" for w in words)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--quick", action="store_true", help="only the few that `make check` takes")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="those whose name or file has every WORD")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--no-baseline", action="store_true", help="take for granted that the unchanged tests pass")
    options = parser.parse_args(arguments)
    mutants = chosen_mutants(options.only, options.quick)
    if options.list:
        print("\n".join(f"{m.name:50} {m.op:26} {m.file}" for m in mutants))
        return 0
    if reason := missing_tools():
        print(f"skipped: {reason}")
        return 0
    survivors, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        flags = FLAGS + precompile_torch(Path(folder), FLAGS)
        if not options.no_baseline:
            groups = list({(m.source, m.op, m.tests, m.triton): m for m in mutants}.values())
            for mutant, verdict in zip(groups, pool.map(lambda m: judge(m, flags, False), groups), strict=True):
                if verdict.caught:
                    print(f"the unchanged tests of {mutant.op} fail: {verdict.reason}")
                    return 1
        running = {pool.submit(judge, mutant, flags): mutant for mutant in mutants}
        for future in as_completed(running):
            mutant, verdict = running[future], future.result()
            survivors += not verdict.caught
            print(f"{'caught' if verdict.caught else 'SURVIVED':8} {mutant.name:50} {verdict.reason[:150]}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants caught in {time.monotonic() - start:.0f} s")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
