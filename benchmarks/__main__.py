"""``python -m benchmarks [CASE ...]``: time the cases whose names contain one of the words, all by default."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES
from benchmarks.clock import clock_of
from benchmarks.contest import Case, Contest
from benchmarks.measure import Stats, bandwidth, interleave, machine_facts
from benchmarks.sparse_loop_cases import peak_memory
from benchmarks.startup import startup_times

PROCESSES = {"startup": startup_times, "loops": peak_memory}
"""What is measured of whole processes, by the word that asks for it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("words", nargs="*", help="words in the names of cases to run; 'startup' and 'loops' too")
    parser.add_argument("--runs", type=int, default=7, help="timed rounds of each contender (slow ones: --slow-runs)")
    parser.add_argument("--slow-runs", type=int, default=2, help="rounds for contenders of over three seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    options = parser.parse_args()
    cases = [case for case in CASES if options.device in case.devices]
    if options.list:
        print("\n".join([*(case.name for case in cases), *PROCESSES]))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device")
    torch.set_num_threads(options.threads)
    facts = machine_facts(options.threads, options.device)
    print("  ".join(f"{k}={v}" for k, v in facts.items() if k != "features"))
    chosen = [c for c in cases if not options.words or any(w in c.name for w in options.words)]
    results: list[dict[str, Any]] = []
    for case in chosen:
        results.append(_run_or_fail(case, options))
        _write(options.json, facts, results)
    for word, measure in PROCESSES.items():
        if options.device == "cpu" and (not options.words or word in options.words):
            results.append(measure())
            _write(options.json, facts, results)
    return 1 if any("refused" in r for r in results) else 0


def _write(path: Path | None, facts: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """After every case, so that a run that is cut short leaves what it measured."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": facts, "results": results}, indent=2) + "\n")


def _run_or_fail(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One case; if it raises, its error, and the others go on."""
    try:
        return _run(case, options)
    except Exception as error:
        print(f"  failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return {"case": case.name, "refused": repr(error)}


def _run(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    print(f"\n{case.name}")
    red = _red(case.op, options.device)
    if red:
        print(f"  refused: the operator's own test is red: {red}")
        return {"case": case.name, "refused": red}
    with torch.device(options.device):  # not while they run: it slows every torch call of theirs
        contest = case.build()
    reachable = bandwidth(options.device, options.threads)
    contenders = {**contest.ours, **contest.baselines}
    stats = interleave(contenders, options.runs, options.slow_runs, clock=clock_of(options.device))
    reachable = max(reachable, bandwidth(options.device, options.threads))
    rows = {name: asdict(s) for name, s in stats.items()}
    for name, s in stats.items():
        print(f"  {name:36s} {_describe(s, contest, reachable)}")
    ratios = {}
    first = next(iter(contest.ours))
    for ours in contest.ours:
        for theirs in contest.baselines:
            ratios[f"{theirs} / {ours}"] = ratio = stats[theirs].median / stats[ours].median
            bar = case.bars.get(theirs) if ours == first else None
            print(f"  {ours} is {ratio:6.2f}x faster than {theirs}" + (f"  (bar {bar:g}x)" if bar else ""))
    return {"case": case.name, "stats": rows, "ratios": ratios, "bars": case.bars, "bytes": contest.bytes_moved,
            "flops": contest.flops, "bandwidth": reachable}  # fmt: skip


def _describe(s: Stats, contest: Contest, reachable: float) -> str:
    text = f"{s.median * 1e3:10.2f} ms  [{s.minimum * 1e3:.2f}, {s.maximum * 1e3:.2f}] x{s.runs}"
    if contest.bytes_moved:
        gb = contest.bytes_moved / s.median / 1e9
        text += f"  {gb:6.1f} GB/s  {s.median * reachable / contest.bytes_moved:5.2f} x floor"
    if contest.flops:
        text += f"  {contest.flops / s.median / 1e9:7.1f} GFLOP/s"
    return text + f"  +{s.extra_bytes / 2**20:.0f} MiB"


def _red(op: str, device: str) -> str | None:
    """Why the operator must not be timed: its samples against the truth, on the backend that will be timed."""
    if not op:
        return None
    from torch.utils._pytree import tree_map_only

    from tests.ops.cases import all_cases, assert_within_budget, listed

    case = next((c for c in all_cases() if c.op.name == op), None)
    if case is None:
        return "no case in tests/ops"
    for name, sample in case.samples.items():
        args = sample(torch.float32)
        eager, truth = listed(case.op.reference(*args)), listed(case.truth(*args))
        there = tree_map_only(torch.Tensor, lambda x: x.to(device), args)
        out = [o.cpu() for o in listed(case.op(*there))]
        try:
            if case.compare:
                case.compare(args, out, eager, truth)
            else:
                assert_within_budget(out, eager, truth)
        except AssertionError as error:
            return f"{name}: {str(error).splitlines()[0] if str(error) else 'differs'}"
    return None


if __name__ == "__main__":
    sys.exit(main())
