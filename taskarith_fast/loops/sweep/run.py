"""A sweep from its file to its table, in the order it runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from taskarith_fast.errors import ArgumentError, DataError, TaskarithError
from taskarith_fast.loops.sweep.choose import choose, optuna_package
from taskarith_fast.loops.sweep.clock import Clock
from taskarith_fast.loops.sweep.execute import Sweep
from taskarith_fast.loops.sweep.export import check_export, export_records
from taskarith_fast.loops.sweep.halving import climb
from taskarith_fast.loops.sweep.job import Job
from taskarith_fast.loops.sweep.page import write_page
from taskarith_fast.loops.sweep.plan import Plan, make_plan
from taskarith_fast.loops.sweep.pool import HerePool, LocalPool, Pool, devices_of
from taskarith_fast.loops.sweep.ray_pool import RayPool, ray_package
from taskarith_fast.loops.sweep.store import Store
from taskarith_fast.loops.sweep.table import Record, best_of, records_of, references_of, score_of, settings_of
from taskarith_fast.loops.sweep.worker import is_disk_full
from taskarith_fast.progress import SILENT, Progress

DATABASE = "sweep.sqlite"
_SPARE = 1 << 26  # bytes beyond the plan's that a disk must have


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    folder: Path
    """Where the database and what was trained are."""
    records: list[Record]
    """One a point of the plan that was visited; columns as `table.records_of`."""
    failed: int
    """Points that have no result; the same sweep tries them again."""

    def best(self) -> list[Record]:
        """The best merge of each method, set of tasks, seed and recipe."""
        return best_of(self.records)


def sweep(
    path: str | os.PathLike[str],
    *,
    workers: int = 0,
    device: str = "auto",
    ray: str | None = None,
    in_process: bool = False,
    export: str | os.PathLike[str] | None = None,
    report: bool = False,
    progress: Progress | None = None,
) -> SweepResult:
    """Visit every point of a sweep file that is not in its database yet.

    Args:
        path: The sweep file, TOML; see `file.SweepFile`.
        workers: Processes; 0 starts one a GPU, or one a core where there is none.
        device: "auto" (CUDA where there is one), "cpu", "cuda" (all GPUs) or "cuda:N".
        ray: Address of a Ray cluster ("auto", "ray://host:10001" ...) whose machines all see the sweep's folders; one
            worker a GPU or core of the cluster.
        in_process: Start no process: points are computed here, one after the other.
        export: Also write the table to this .csv or .parquet file.
        report: Also write report.html into the sweep's folder.
        progress: Shows a bar with the time left.

    Returns:
        The table; points that an earlier run finished are in it.

    Raises:
        ArgumentError, BackendError, CheckpointError, DataError: If anything that the file names is wrong or missing,
            or the database is not this sweep's, before any work; DataError too when the disk gets full. Whatever
            was finished before is kept.
    """
    if export is not None:
        check_export(Path(export))
    if ray is not None:
        ray_package()
    plan = plan_sweep(path)
    devices = devices_of(device, workers)
    _make_folder(plan.folder)
    try:
        with _alone(plan.folder), Store(plan.folder / DATABASE) as store:
            _check_disk(plan)
            plan.inputs.write_shared(plan.folder / "shared")
            with closing(_pool(plan, devices, workers, ray, in_process)) as pool:
                swept = _run(plan, store, pool, max(len(devices), 1), progress or SILENT)
            for path in (plan.folder / "shared").glob("factors-*"):
                path.unlink(missing_ok=True)
    except Exception as error:  # safetensors wraps what the system says in a class of its own
        if isinstance(error, TaskarithError) or not is_disk_full(error):
            raise
        raise DataError(f"{plan.folder}: the disk is full; finished points are kept") from None
    keys = {job.key for job in plan.jobs}
    rows = [row for key, row in sorted(swept.rows.items()) if key in keys]
    result = SweepResult(plan.folder, records_of(rows), sum(row.state == "failed" for row in rows))
    if export is not None:
        export_records(result.records, Path(export))
    if report:
        write_page(result.records, plan, devices[0].partition(":")[0])
    return result


def plan_sweep(path: str | os.PathLike[str]) -> Plan:
    """Read and check a sweep file and everything it names; nothing is written.

    Raises:
        ArgumentError, BackendError, CheckpointError, DataError: As `sweep`.
    """
    plan = make_plan(Path(path))
    if plan.file.optuna is not None:
        optuna_package()
    return plan


def summary_lines(result: SweepResult) -> list[str]:
    """What a sweep found, for a reader: the best of each method, and how much failed."""
    lines = []
    for record in result.best():
        words = [str(record[name]) for name in ("method", "tasks", "recipe") if record[name] is not None]
        words += [f"seed {record['seed']}"] if record["seed"] is not None else []
        score = f"{100 * record['mean']:6.2f} +- {100 * record['mean_stderr']:.2f} %"
        if record.get("normalized") is not None:
            score += f", normalised {100 * record['normalized']:6.2f} %"
        lines.append(f"{score}  {', '.join(words)}: {settings_of(record)}")
    if result.failed:
        errors = [record["error"] for record in result.records if record["state"] == "failed"]
        lines.append(f"{result.failed} points failed, the first: {errors[0]}; run the same command to try them again")
    return [*lines, f"{len(result.records)} points in {result.folder / DATABASE}"]


def _run(plan: Plan, store: Store, pool: Pool, batch: int, progress: Progress) -> Sweep:
    """Everything that merges read, then the merges: all of them, rung by rung, or as Optuna chooses."""
    merges = [job for job in plan.jobs if job.kind == "merge"]
    others = [job for job in plan.jobs if job.kind != "merge"]
    lines = progress is not SILENT and not sys.stderr.isatty()
    with progress.stage(f"sweep {plan.folder.name}", 100) as bar:
        swept = Sweep(store, pool, clock := Clock(bar, lines=lines))
        if plan.file.halving is None and plan.file.optuna is None:
            clock.expect(swept.undone(plan.jobs))
            swept.run(plan.jobs)
            return swept
        clock.expect(swept.undone(others), merges)
        swept.run(others)
        references = references_of(list(swept.rows.values()))

        def score(job: Job, share: float = 1.0) -> float | None:
            row = swept.rows.get(job.key)
            return None if row is None else score_of(row, references, share)

        if plan.file.halving is not None:
            batches = climb(plan.file.halving, merges, score)
        else:
            assert plan.file.optuna is not None
            batches = choose(plan.file.optuna, merges, batch, score)
        for jobs in batches:
            clock.expect(swept.undone(jobs))
            swept.run(jobs)
        return swept


def _pool(plan: Plan, devices: list[str], workers: int, ray: str | None, in_process: bool) -> Pool:
    if ray is not None:
        return RayPool(plan.setup, ray, workers)
    return HerePool(plan.setup, devices[0]) if in_process else LocalPool(plan.setup, devices)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"output {folder} must be a folder that can be written to ({error.strerror})") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse to run beside another sweep into the same folder."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ArgumentError(
            f"output {folder}: another sweep is writing there; wait for it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _check_disk(plan: Plan) -> None:
    free = shutil.disk_usage(plan.folder).free
    if free < plan.disk_bytes + _SPARE:
        need = (plan.disk_bytes + _SPARE) / 1e9
        raise DataError(
            f"{plan.folder}: the sweep writes up to {need:.2f} GB, the disk has {free / 1e9:.2f} GB free; "
            "make room, or choose another output"
        )
