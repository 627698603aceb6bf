"""Workers on this machine: one process each, started from a server that has imported everything once.

A worker has at most one job. It gets the next when the result of the last is in the database, so a kill of
everything costs one point a worker.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any, Protocol

import torch

from taskarith_fast.errors import ArgumentError, BackendError
from taskarith_fast.loops.runtime import resolve_device
from taskarith_fast.loops.sweep.job import Job, Outcome, Setup
from taskarith_fast.loops.sweep.worker import Worker

_PRELOAD = ["taskarith_fast.loops.sweep.worker", "taskarith_fast.merging", "taskarith_fast.models.vit"]


class Pool(Protocol):
    """Workers by number. `idle` ones take jobs; a worker that dies is replaced, or leaves."""

    def idle(self) -> list[int]:
        """Workers without a job, in order."""

    def submit(self, worker: int, job: Job) -> None:
        """Give an idle worker a job."""

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Wait for results: worker, outcome; None where the worker died with its job."""

    def close(self) -> None:
        """Stop the workers."""


class HerePool:
    """No processes: each job is done by `submit` itself."""

    def __init__(self, setup: Setup, device: str = "cpu") -> None:
        self._worker = Worker(setup, device)
        self._done: list[tuple[int, Outcome | None]] = []

    def idle(self) -> list[int]:
        return [] if self._done else [0]

    def submit(self, worker: int, job: Job) -> None:
        self._done.append((worker, self._worker.run(job)))

    def wait(self) -> list[tuple[int, Outcome | None]]:
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        pass


class LocalPool:
    """One process a device, started with its first job.

    Args:
        setup: What all workers know.
        devices: One device a worker, such as ["cpu", "cpu"] or ["cuda:0", "cuda:1"].
    """

    def __init__(self, setup: Setup, devices: Sequence[str]) -> None:
        self._setup, self._devices = setup, list(devices)
        # A process that has touched CUDA must not fork; on CPUs the server's imports are shared by all workers.
        fork = hasattr(os, "fork") and all(device == "cpu" for device in devices)
        self._context: Any = multiprocessing.get_context("forkserver" if fork else "spawn")
        if fork:
            self._context.set_forkserver_preload(_PRELOAD)
        self._processes: list[Any] = [None] * len(devices)
        self._pipes: list[Any] = [None] * len(devices)
        self._busy: set[int] = set()

    def idle(self) -> list[int]:
        return [worker for worker in range(len(self._devices)) if worker not in self._busy]

    def submit(self, worker: int, job: Job) -> None:
        self._busy.add(worker)
        if self._processes[worker] is None:
            self._start(worker)
        with contextlib.suppress(OSError):  # it died while it was idle: wait() will say so
            self._pipes[worker].send(job)

    def wait(self) -> list[tuple[int, Outcome | None]]:
        ready = connection.wait([self._pipes[worker] for worker in self._busy])
        results: list[tuple[int, Outcome | None]] = []
        for worker in sorted(self._busy):
            if self._pipes[worker] in ready:
                self._busy.discard(worker)
                try:
                    results.append((worker, self._pipes[worker].recv()))
                except (EOFError, OSError):
                    results.append((worker, None))
                    self._stop(worker)
        return results

    def close(self) -> None:
        for worker in range(len(self._devices)):
            self._stop(worker)

    def pids(self) -> list[int]:
        """Process numbers of the workers."""
        return [process.pid for process in self._processes if process is not None]

    def _start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._setup, self._devices[worker]), daemon=True)
        process.start()
        theirs.close()
        self._processes[worker], self._pipes[worker] = process, ours

    def _stop(self, worker: int) -> None:
        if self._processes[worker] is not None:
            self._pipes[worker].close()
            self._processes[worker].terminate()
            self._processes[worker].join()
            self._processes[worker] = None


def devices_of(device: str, workers: int) -> list[str]:
    """A device for each worker: every GPU once, or one CPU thread a core.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda" (all GPUs) or "cuda:N".
        workers: How many; 0 takes one a GPU or core. Several may share a GPU.

    Raises:
        ArgumentError, BackendError: If `workers` is negative, or the device is not there.
    """
    if workers < 0:
        raise ArgumentError(f"workers must be at least 0, got {workers}")
    place = resolve_device(device)
    if place.type == "cpu":
        return ["cpu"] * (workers or _cores())
    gpus = torch.cuda.device_count() if place.type == "cuda" else 1
    if place.index is not None and place.index >= gpus:
        raise BackendError(f"device {device!r} is not available: there are {gpus} CUDA devices, counted from 0")
    names = [f"cuda:{i}" for i in range(gpus)] if place.index is None else [str(place)]
    return [names[i % len(names)] for i in range(workers or len(names))]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(pipe: Any, setup: Setup, device: str) -> None:
    """A worker's life: jobs in, outcomes out, until the pipe is closed."""
    _die_with_parent(os._exit)
    worker = Worker(setup, device)
    while True:
        try:
            job = pipe.recv()
            pipe.send(worker.run(job))
        except (EOFError, OSError, KeyboardInterrupt):
            return


def _die_with_parent(leave: Callable[[int], None]) -> None:
    """Stop in the middle of a job if the parent is killed: a new run of the sweep may begin the same job."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            connection.wait([parent.sentinel])
            leave(1)

        threading.Thread(target=watch, daemon=True).start()
