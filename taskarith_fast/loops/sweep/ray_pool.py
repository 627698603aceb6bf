"""Workers on the machines of a Ray cluster (extra `[ray]`): the same jobs, the same rules."""

from __future__ import annotations

import logging
import socket
from typing import Any

from taskarith_fast.errors import BackendError
from taskarith_fast.loops.sweep.job import Job, Outcome, Setup
from taskarith_fast.loops.sweep.worker import Worker

_PATIENCE = 10.0  # seconds


def ray_package() -> Any:
    """The package.

    Raises:
        BackendError: If it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise BackendError("--ray needs the package ray: pip install 'taskarith_fast[ray]'") from None
    return ray


class RayPool:
    """One actor a GPU of the cluster, or a core where it has none.

    Args:
        setup: What all workers know; its paths must be the same files on every machine.
        address: Of the cluster, as ray.init takes it.
        workers: How many; 0 takes all there is room for.

    Raises:
        BackendError: If Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, setup: Setup, address: str, workers: int = 0) -> None:
        self._ray = ray_package()
        self._setup = setup
        try:
            _reach(address)
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BackendError(f"--ray {address}: no Ray cluster answers there ({reason})") from None
        self._gpus = bool(self._room("GPU"))
        self._actors = {worker: self._start() for worker in range(workers or self._room("GPU") or self._room("CPU"))}
        self._busy: dict[Any, int] = {}

    def idle(self) -> list[int]:
        return [worker for worker in self._actors if worker not in self._busy.values()]

    def submit(self, worker: int, job: Job) -> None:
        self._busy[self._actors[worker].run.remote(job)] = worker

    def wait(self) -> list[tuple[int, Outcome | None]]:
        ready, _ = self._ray.wait(list(self._busy), num_returns=1)
        results: list[tuple[int, Outcome | None]] = []
        for reference in ready:
            worker = self._busy.pop(reference)
            try:
                results.append((worker, self._ray.get(reference)))
            except self._ray.exceptions.RayError:
                results.append((worker, None))
                self._replace(worker)
        return results

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()

    def _start(self) -> Any:
        resources = {"num_cpus": 0, "num_gpus": 1} if self._gpus else {"num_cpus": 1}
        return self._ray.remote(**resources)(Worker).remote(self._setup, "cuda" if self._gpus else "cpu")

    def _replace(self, worker: int) -> None:
        """A new actor for one that died; none if its machine is gone and the others are full."""
        del self._actors[worker]
        if len(self._actors) < self._room("GPU" if self._gpus else "CPU"):
            self._actors[worker] = self._start()
        if not self._actors:
            raise BackendError("the Ray cluster has no machine left; finished points are kept")

    def _room(self, resource: str) -> int:
        return int(self._ray.cluster_resources().get(resource, 0))


def _reach(address: str) -> None:
    """Fail at once where nothing listens at host:port; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
