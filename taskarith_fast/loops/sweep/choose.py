"""Optuna as the one who chooses which points of a grid are visited (extra `[optuna]`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from taskarith_fast.errors import BackendError
from taskarith_fast.loops.sweep.file import OptunaTable
from taskarith_fast.loops.sweep.job import Job

Score = Callable[[Job], float | None]


def optuna_package() -> Any:
    """The package.

    Raises:
        BackendError: If it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise BackendError("[optuna] needs the package optuna: pip install 'taskarith_fast[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def choose(table: OptunaTable, jobs: Sequence[Job], batch: int, score: Score) -> Iterator[list[Job]]:
    """Batches of jobs, chosen by what earlier ones scored; each must be done before the next is asked for.

    Every set of tasks, models and every method has a study of its own. A study's parameters are places in the sorted
    values of what varies, so it knows that neighbours are alike; a place is a point of the grid, with its hash.

    Args:
        table: Trials and seed.
        jobs: The merges of the grid.
        batch: How many each study proposes at a time.
        score: A finished job's score, None if it failed.
    """
    studies = [_Study(table, group) for group in _groups(jobs)]
    while any(study.left for study in studies):
        asked = [(study, *pair) for study in studies for pair in study.ask(batch)]
        yield list({job.key: job for _, _, job in asked}.values())
        for study, trial, job in asked:
            study.tell(trial, score(job))


class _Study:
    def __init__(self, table: OptunaTable, jobs: Sequence[Job]) -> None:
        optuna = optuna_package()
        self._by_point = {json.dumps(job.labels["parameters"], sort_keys=True): job for job in jobs}
        points = [job.labels["parameters"] for job in jobs]
        values = {name: list({json.dumps(p[name]): p[name] for p in points}.values()) for name in points[0]}
        self._axes = {name: _sorted(found) for name, found in values.items()}
        sampler = optuna.samplers.TPESampler(seed=table.seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self.left = table.trials

    def ask(self, most: int) -> list[tuple[Any, Job]]:
        """Trials and their jobs; combinations that are no points of the grid count as failed trials."""
        asked: list[tuple[Any, Job]] = []
        while self.left and len(asked) < most:
            self.left -= 1
            trial = self._study.ask()
            point = {n: v[trial.suggest_int(n, 0, len(v) - 1)] for n, v in self._axes.items()}
            job = self._by_point.get(json.dumps(point, sort_keys=True))
            if job is None:
                self._study.tell(trial, state=self._failed)
            else:
                asked.append((trial, job))
        return asked

    def tell(self, trial: Any, score: float | None) -> None:
        if score is None:
            self._study.tell(trial, state=self._failed)
        else:
            self._study.tell(trial, score)


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        labels = {name: value for name, value in job.labels.items() if name != "parameters"}
        groups.setdefault(json.dumps(labels, sort_keys=True), []).append(job)
    return list(groups.values())


def _sorted(values: list[Any]) -> list[Any]:
    return sorted(values) if all(isinstance(v, (int, float)) for v in values) else values
