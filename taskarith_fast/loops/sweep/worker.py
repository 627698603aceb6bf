"""What a worker does with a job: train a file, or judge a model; what jobs share it does once."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.checkpoint import load_state_dict
from taskarith_fast.errors import TaskarithError
from taskarith_fast.loops.evaluate import evaluate
from taskarith_fast.loops.files import (
    FinetuneOptions,
    calibrate_to_file,
    finetune_to_file,
    probe_to_file,
    read_head,
)
from taskarith_fast.loops.runtime import threads
from taskarith_fast.loops.sweep.job import Job, Judge, Outcome, Setup, Train
from taskarith_fast.merging.cart_factors import CartFactors
from taskarith_fast.merging.direction import Direction
from taskarith_fast.merging.methods import merge
from taskarith_fast.merging.sharing import direction_of, split_scale
from taskarith_fast.progress import SILENT

State = Mapping[str, Tensor]

_CHECKPOINT_EVERY = 100  # steps


class Worker:
    """Does jobs one after the other on one device.

    Args:
        setup: What the jobs have in common.
        device: "cpu", "cuda:0" ...
    """

    def __init__(self, setup: Setup, device: str) -> None:
        self.setup, self.device = setup, torch.device(device)
        self._tasks: dict[str, data.Task] = {}
        self._heads: dict[tuple[Path, str], nn.Module] = {}
        self._states: dict[Path, State] = {}
        self._order: dict[str, Tensor] = {}
        self._factors: tuple[str, CartFactors] | None = None
        self._direction: tuple[Any, Direction] | None = None

    def run(self, job: Job) -> Outcome:
        """Do one job. Whatever goes wrong is in the outcome: the sweep goes on without this point."""
        start = time.perf_counter()
        try:
            with threads(self.setup.threads if self.device.type == "cpu" else None):
                if isinstance(job.work, Train):
                    facts = self._train(job.kind, job.work)
                    return Outcome(job.key, facts=facts, seconds=time.perf_counter() - start)
                arithmetic = self._load(job.work, job.family)
                correct = self._judge(job.work, job.share)
                return Outcome(job.key, correct, {}, time.perf_counter() - start, arithmetic)
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not isinstance(error, TaskarithError):
                text = f"{type(error).__name__}: {text}"
            return Outcome(job.key, error=text, disk_full=is_disk_full(error), seconds=time.perf_counter() - start)

    @cached_property
    def encoder(self) -> Any:
        """The module whose weights are overwritten by each model judged."""
        return self.setup.encoder.load().to(self.device)

    @cached_property
    def own(self) -> dict[str, Tensor]:
        return dict(self.encoder.state_dict())

    def _train(self, kind: str, work: Train) -> dict[str, Any]:
        task, choice = self._task(work.task), self.setup.encoder
        settings = {**work.settings, "device": str(self.device)}
        common: dict[str, Any] = {"preset": work.preset, "overwrite": True, "progress": SILENT}
        if kind == "probe":
            record = probe_to_file(choice, task, work.output, settings=settings, **common)
            return {"val_accuracy": record["val_accuracy"]}
        assert work.head is not None
        if kind == "masks":
            record = calibrate_to_file(choice, task, work.head, None, work.output, settings=settings, **common)
            return {"trained": record["trained"]}
        settings["checkpoint_every"] = _CHECKPOINT_EVERY
        options = FinetuneOptions(masks=work.masks)
        work.output.parent.mkdir(parents=True, exist_ok=True)
        record = finetune_to_file(choice, task, work.head, work.output, settings=settings, options=options, **common)
        return {"loss": record["loss"]}

    def _load(self, work: Judge, family: str) -> float:
        """Write the model into the encoder; returns the seconds that took."""
        encoder = self.encoder  # loading it is no arithmetic
        start = time.perf_counter()
        if work.method is None:
            _copy(self._state(work.models[0]), self.own)
        else:
            self._merge(work, family)
        if encoder is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _merge(self, work: Judge, family: str) -> None:
        assert work.method is not None
        if self.device.type != "cpu":  # copies: keep those of one merge
            self._states = {path: s for path, s in self._states.items() if path in (self.setup.base, *work.models)}
        parameters = dict(work.parameters)
        base, models = self._state(self.setup.base), [self._state(path) for path in work.models]
        split = split_scale(work.method, parameters)
        narrow = any(t.is_floating_point() and t.dtype != torch.float32 for t in base.values())
        if split is None or (narrow and work.max_rank_ratio is None):
            _copy(merge(base, models, work.method, **parameters), self.own)
            return
        rest, scale = split
        key = (family, tuple(sorted((name, str(value)) for name, value in rest.items())))
        if self._direction is None or self._direction[0] != key:
            self._direction = None  # so that the last one's memory is free before the next is made
            if work.max_rank_ratio is not None:
                direction = self._cart(work, family, base, models).direction(parameters["rank_ratio"])
            else:
                direction = direction_of(base, models, work.method, **rest)
            self._direction = (key, direction)
        self._direction[1].write(scale, self.own)

    def _cart(self, work: Judge, family: str, base: State, models: list[State]) -> CartFactors:
        """The family's decompositions, from the file that the first worker on this machine writes."""
        if self._factors is None or self._factors[0] != family:
            self._factors = None
            options = {name: work.parameters[name] for name in ("split_qkv", "svd")}
            if self.device.type != "cpu":  # a GPU's copy is its own
                factors = CartFactors(base, models, max_rank_ratio=work.max_rank_ratio or 1.0, **options)
            else:
                path = self.setup.shared / f"factors-{family.split()[-1]}-{work.max_rank_ratio}.safetensors"
                with FileLock(f"{path}.lock"):
                    if not path.exists():
                        CartFactors(base, models, max_rank_ratio=work.max_rank_ratio or 1.0, **options).save(path)
                factors = CartFactors.load(path)
            self._factors = (family, factors)
        return self._factors[1]

    def _judge(self, work: Judge, share: tuple[float, float]) -> dict[str, bytes]:
        correct = {}
        for name, path in zip(work.tasks, work.heads, strict=True):
            order = self._images(name)
            begin, end = (images_of(part, len(order)) for part in share)
            if end > begin:
                images = data.SubsetSplit(self._task(name).splits[self.setup.split], order[begin:end])
                found = evaluate(
                    self.encoder, self._head(path, name), images,
                    batch_size=self.setup.batch_size, precision=self.setup.precision,
                )  # fmt: skip
                correct[name] = found.correct.to(torch.uint8).numpy().tobytes()
            else:
                correct[name] = b""
        return correct

    def _task(self, name: str) -> data.Task:
        if name not in self._tasks:
            self._tasks[name] = data.find_task(self.setup.tasks[name])
        return self._tasks[name]

    def _images(self, name: str) -> Tensor:
        """A fixed random order of the images that are judged, so that any first part of them is a fair sample."""
        if name not in self._order:
            size = len(self._task(name).splits[self.setup.split])
            order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
            self._order[name] = order[: self.setup.images or size]
        return self._order[name]

    def _head(self, path: Path, name: str) -> nn.Module:
        if (path, name) not in self._heads:
            self._heads[path, name] = read_head(path, self._task(name)).to(self.device)
        return self._heads[path, name]

    def _state(self, path: Path) -> State:
        """A checkpoint's tensors: on a CPU the pages of the file itself, one copy for all processes."""
        if path not in self._states:
            self._states[path] = {name: tensor.to(self.device) for name, tensor in load_state_dict(path).items()}
        return self._states[path]


def images_of(share: float, images: int) -> int:
    """How many images of so many a share is, rounded up."""
    return min(images, -int(-share * images // 1))


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, however wrapped, says that a disk is full."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error) or "disk is full" in str(error)


def _copy(state: State, own: State) -> None:
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
