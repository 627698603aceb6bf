"""From a sweep file to its jobs: which points there are, what they share, what they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.sweep.file import SweepFile, read_sweep
from taskarith_fast.loops.sweep.grid import Point, subsets_of
from taskarith_fast.loops.sweep.inputs import Inputs
from taskarith_fast.loops.sweep.job import Job, Judge, Made, Setup, Train, hash_of
from taskarith_fast.loops.sweep.merges import Grid, read_grid, shared_of
from taskarith_fast.loops.sweep.training import Variant, finetune_job, masks_job, probe_job, variants_of
from taskarith_fast.merging.cart_blocks import is_cart_matrix, rank_of
from taskarith_fast.merging.methods import METHODS


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to run."""

    file: SweepFile
    folder: Path
    setup: Setup
    inputs: Inputs
    jobs: list[Job]
    """Each key once; jobs come after those they need."""
    disk_bytes: int
    """What the sweep writes at most, besides its database."""

    def lines(self) -> list[str]:
        """The plan for a reader."""
        kinds: dict[str, list[Job]] = {}
        for job in self.jobs:
            kinds.setdefault(job.kind, []).append(job)
        lines = [f"{kind:9s} {len(jobs):6d} points" for kind, jobs in kinds.items()]
        families = {job.family for job in kinds.get("merge", [])}
        directions = {(job.family, *job.order[:-1]) for job in kinds.get("merge", [])}
        if families:
            lines.append(f"merges share the work of {len(directions)} directions, in {len(families)} families")
        return [*lines, f"at most {self.disk_bytes / 1e9:.2f} GB are written to {self.folder}"]


@dataclass(frozen=True)
class Models:
    """Fine-tuned models of all tasks, made the same way."""

    labels: Point
    of: dict[str, Made]
    density: float


def make_plan(path: Path) -> Plan:
    """Read, check and expand a sweep file; only headers, hashes and samples of the data are read.

    Raises:
        ArgumentError, BackendError, CheckpointError, DataError: As `read_sweep`, `Inputs` and `expand`.
    """
    file = read_sweep(path)
    folder = path.parent / (file.output or path.stem)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"output must be a folder or not exist yet, {folder} is a file")
    variants = [v for i, table in enumerate(file.train) for v in variants_of(table, f"train[{i}]")]
    sizes = {*map(len, file.subsets), *file.subset_sizes} or {len(file.tasks)}
    grids = [read_grid(table, f"merge[{i}]", sizes) for i, table in enumerate(file.merge)]
    planner = _Planner(Inputs(file, path.parent), folder, variants)
    jobs = list({job.key: job for job in planner.jobs(grids)}.values())
    return Plan(file, folder, planner.setup, planner.inputs, jobs, planner.disk_bytes(jobs))


class _Planner:
    def __init__(self, inputs: Inputs, folder: Path, variants: list[Variant]) -> None:
        self.inputs, self.folder, self.variants, self.file = inputs, folder, variants, inputs.file
        self.names = list(inputs.tasks)
        self.sets = subsets_of(self.names, self.file.subsets, self.file.subset_sizes)
        base, self.places = inputs.places(folder / "shared")
        file = self.file
        self.setup = Setup(
            inputs.choice, base.resolve(), inputs.words, (folder / "shared").resolve(), file.split, file.images,
            file.batch_size, file.precision,
        )  # fmt: skip

    def jobs(self, grids: list[Grid]) -> Iterator[Job]:
        heads, training = self._heads()
        yield from training
        for models, jobs in self._models(heads):
            yield from jobs
            for name in self.names:
                yield self._single(name, heads, models)
            for grid in grids:
                for subset in self.sets:
                    yield from self._merges(grid, subset, heads, models)

    def disk_bytes(self, jobs: list[Job]) -> int:
        made = [j.work.output for j in jobs if j.kind == "finetune" and isinstance(j.work, Train)]
        trained = sum(not path.exists() for path in made) * self.inputs.model_bytes
        families = {j.family: j.work for j in jobs if isinstance(j.work, Judge) and j.work.max_rank_ratio is not None}
        return trained + sum(self._factor_bytes(len(w.models), w.max_rank_ratio or 0.0) for w in families.values())

    def _factor_bytes(self, tasks: int, ratio: float) -> int:
        matrices = [t for name, t in self.inputs.own.items() if is_cart_matrix(name, t)]
        return self.inputs.model_bytes + sum(4 * tasks * rank_of(ratio, t) * sum(t.shape) for t in matrices)

    def _heads(self) -> tuple[dict[str, Made], list[Job]]:
        heads, jobs = {}, []
        for name, source in self.inputs.heads.items():
            if source is not None:
                heads[name] = Made(source.path.resolve(), self.inputs.hashes[source.path])
            else:
                jobs.append(probe_job(self.inputs, name, self.folder.resolve()))
                heads[name] = jobs[-1].made
        return heads, jobs

    def _models(self, heads: dict[str, Made]) -> Iterator[tuple[Models, list[Job]]]:
        """Every set of fine-tuned models, with the jobs that make it."""
        for seed, sources in self.inputs.finetuned.items():
            made = {n: self._file(source.path) for n, source in zip(self.names, sources, strict=True)}
            yield Models({} if seed is None else {"seed": seed}, made, 1.0), []
        folder = self.folder.resolve()
        for variant in self.variants:
            for seed in self.file.seeds:
                jobs, made = [], {}
                for name in self.names:
                    masks = None
                    if variant.masks is not None:
                        jobs.append(masks_job(self.inputs, name, variant, seed, heads[name], folder))
                        masks = jobs[-1].made
                    jobs.append(finetune_job(self.inputs, name, variant, seed, heads[name], masks, folder))
                    made[name] = jobs[-1].made
                yield Models({"seed": seed, "recipe": variant.labels}, made, variant.density), jobs

    def _file(self, path: Path) -> Made:
        return Made(self.places[path].resolve(), self.inputs.hashes[path])

    def _single(self, name: str, heads: dict[str, Made], models: Models) -> Job:
        head, model = heads[name], models.of[name]
        identity = self._judged((name,), heads, models)
        work = Judge((name,), (head.path,), (model.path,))
        labels = {"tasks": [name], **models.labels}
        needs = head.needs + model.needs
        return Job("single", labels, identity, work, "single", (name,), needs, self.inputs.count(name))

    def _merges(self, grid: Grid, subset: tuple[str, ...], heads: dict[str, Made], models: Models) -> Iterator[Job]:
        """The points of a table for one set of tasks and of models."""
        names = tuple(self.names) if grid.judge_all else subset
        judged = self._judged(names, heads, models) | ({} if names == subset else {"merged": list(subset)})
        made = [*(heads[name] for name in names), *(models.of[name] for name in subset)]
        needs = tuple(dict.fromkeys(key for file in made for key in file.needs))
        cost = sum(self.inputs.count(name) for name in names)
        paths = tuple(heads[name].path for name in names), tuple(models.of[name].path for name in subset)
        for method, given in grid.points:
            for seed in self._method_seeds(method, given, models):
                parameters = METHODS[method].parameters | given | seed
                if grid.stretch:
                    parameters["scale"] = parameters["scale"] / models.density
                shared = shared_of(grid, method, parameters)
                labels = {"method": method, "parameters": parameters, "tasks": list(subset)} | models.labels | seed
                identity = judged | {"method": method, "parameters": parameters}
                family = f"{method} {hash_of([judged, shared.work, seed])}"
                work = Judge(names, *paths, method, parameters, shared.max_rank_ratio)
                yield Job("merge", labels, identity, work, family, shared.order, needs, cost)

    def _method_seeds(self, method: str, given: Point, models: Models) -> list[Point]:
        """The seeds of a method that draws numbers and was not given one: the models' own, or all."""
        if "seed" not in METHODS[method].parameters or "seed" in given:
            return [{}]
        own = models.labels.get("seed")
        return [{"seed": seed} for seed in (self.file.seeds if own is None else [own])]

    def _judged(self, subset: tuple[str, ...], heads: dict[str, Made], models: Models) -> dict[str, Any]:
        inputs = self.inputs
        return {
            "encoder": [inputs.choice.name, inputs.image_size, inputs.choice.depth, inputs.weights],
            "tasks": [[n, inputs.fingerprints[n][self.file.split], heads[n].id, models.of[n].id] for n in subset],
            "images": [self.file.split, *(inputs.count(name) for name in subset)],
            "precision": self.file.precision,
        }
