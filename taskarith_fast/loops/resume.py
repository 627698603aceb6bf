"""Checkpoints of a fine-tuning run: a killed run goes on where it was, with the same bytes as if it had not been.

A checkpoint is one file, written atomically: trained tensors, optimizer state, losses, step, random numbers, and
what the run is. The order of the images is a function of seed and epoch, so their position is the step's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.checkpoint.commit import staged
from taskarith_fast.errors import CheckpointError
from taskarith_fast.loops.config import FinetuneConfig, describe
from taskarith_fast.loops.distributed import World, is_main
from taskarith_fast.masks import Masks

_FORMAT = 1
_NO_MATTER = ("checkpoint_every", "threads")  # fields of a configuration that do not change the result


@dataclass(frozen=True)
class RunCheckpoint:
    """The checkpoint of one run.

    Args:
        path: Its file, in any directory that all processes of the run see.
        identity: What the run is, as `identify` says; a checkpoint of another run is refused.
        every: Steps between two checkpoints.
    """

    path: Path
    identity: Mapping[str, Any]
    every: int

    def load(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[Tensor]]:
        """Bring tensors, optimizer and random numbers to where the run was.

        Returns:
            The number of steps done, 0 if there is no checkpoint, and their losses.

        Raises:
            CheckpointError: If the file is of another run, naming what differs, or not a checkpoint.
        """
        if not self.path.exists():
            return 0, []
        stored = _read(self.path)
        _check_identity(self.path, stored["identity"], self.identity)
        tensors = _changing(objective)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(stored["tensors"][name])
        optimizer.load_state_dict(stored["optimizer"])
        _restore_random(stored["random"])
        return stored["step"], list(stored["losses"].to(next(iter(tensors.values())).device))

    def save(
        self, step: int, objective: nn.Module, optimizer: torch.optim.Optimizer, losses: list[Tensor], world: World
    ) -> None:
        """Write the state after `step` steps if it is time to; every process must call it."""
        if step % self.every:
            return
        document = {
            "format": _FORMAT,
            "identity": dict(self.identity),
            "step": step,
            "losses": world.mean(torch.stack(losses)).cpu(),
            "tensors": _changing(objective),
            "optimizer": optimizer.state_dict(),
            "random": {device: state for device, state in _random_states(world.device)},
        }
        if is_main():
            with staged(self.path, directory=False) as temporary:
                torch.save(document, temporary)


def identify(
    encoder: nn.Module,
    heads: Mapping[str, nn.Module],
    tasks: Mapping[str, data.Task],
    config: FinetuneConfig,
    masks: Masks | None,
    processes: int,
) -> dict[str, Any]:
    """All that the bytes of a result depend on, by the words that an error uses for it."""
    fields = {f"config.{name}": v for name, v in describe(config).items() if name not in _NO_MATTER}
    return {
        "encoder": fingerprint(encoder.state_dict()),
        **{f"head of {name}": fingerprint(head.state_dict()) for name, head in heads.items()},
        "tasks": [[task.name, list(task.classes), len(task.splits["train"])] for task in tasks.values()],
        "masks": None if masks is None else fingerprint(masks),
        "processes": processes,
        **fields,
    }


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name in tensors:
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _changing(objective: nn.Module) -> dict[str, Tensor]:
    trained = {name: p.detach() for name, p in objective.named_parameters() if p.requires_grad}
    return trained | dict(objective.named_buffers())


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a file that is none
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: expected the checkpoint of a fine-tuning run, cannot read it ({reason})"
        ) from None
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected the checkpoint of a fine-tuning run (format {_FORMAT}), got another file"
        )
    return stored


def _check_identity(path: Path, stored: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name in {**stored, **ours}:
        theirs, mine = stored.get(name), ours.get(name)
        if theirs != mine:
            values = f"{theirs!r} there, {mine!r} here" if name.startswith(("config.", "processes")) else "other values"
            raise CheckpointError(f"{path}: belongs to another run, {name} differs ({values}); remove it to start anew")


def _random_states(device: torch.device) -> list[tuple[str, Tensor]]:
    states = [("cpu", torch.get_rng_state())]
    return [*states, ("cuda", torch.cuda.get_rng_state(device))] if device.type == "cuda" else states


def _restore_random(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
