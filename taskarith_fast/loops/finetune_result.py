"""What a fine-tuning run leaves behind, checked to be finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from taskarith_fast.errors import TaskarithError
from taskarith_fast.loops import distributed
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.recipes import Prepared
from taskarith_fast.models.lora import LowRankAdapter
from taskarith_fast.tangent import LinearizedModel
from taskarith_fast.task_vector import TaskVector


class DivergedError(TaskarithError):
    """The loss is no longer a number."""


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """What a run leaves behind."""

    state: dict[str, Tensor]
    """The encoder's state dict, on the CPU; low-rank updates are merged into it. Of a linearized recipe theta_0 + tau,
    which is to be evaluated by the linearized encoder (`loops.linearized`), not by the encoder."""
    head_states: dict[str, dict[str, Tensor]]
    """Task name -> the state dict of its head, on the CPU; as given unless it was trained."""
    history: dict[str, list[float]]
    """"loss" and "lr" (the encoder's) of every optimizer step."""
    config: FinetuneConfig
    """What the run was told."""
    trained: tuple[str, ...]
    """Names of the encoder tensors that were trained."""
    seconds: float
    """Wall time."""
    step_seconds: dict[str, float]
    """Median wall time of an optimizer step's parts: "forward_backward" (data too), and "step" (clipping too)."""
    adapter: LowRankAdapter | None = None
    """The factors of the recipe "lora", on the CPU."""
    tau: TaskVector | None = None
    """The tangents that a linearized recipe trained, on the CPU, unrounded; names as in `trained`."""
    snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Step -> the state dict after it, for ``config.snapshots``."""

    @property
    def head_state(self) -> dict[str, Tensor]:
        """The state dict of the head of a run with one task."""
        (state,) = self.head_states.values()
        return state


def encoder_state(prepared: Prepared) -> tuple[dict[str, Tensor], TaskVector | None]:
    """The state of a trained encoder on the CPU, as ordinary weights, and tau where it is linearized; few copies."""
    encoder = prepared.encoder
    if isinstance(encoder, LinearizedModel):
        start = state_on_cpu(encoder.model)
        tau = TaskVector({name: tangent.detach().cpu() for name, tangent in encoder.tangents().items()})
        return start | {name: start[name] + delta for name, delta in tau.items()}, tau
    state = state_on_cpu(encoder)
    if prepared.adapter is not None:
        prepared.adapter.check_seen()
        state = prepared.adapter.merged(state)
    return state, None


def state_on_cpu(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, a copy only where it is on another device or cut; every process of a run must call it."""
    return {name: distributed.whole(tensor.detach()).cpu() for name, tensor in module.state_dict().items()}


def checked_loss(loss: Tensor, step: int, config: FinetuneConfig) -> str:
    """The loss in words.

    Raises:
        DivergedError: If it is not finite.
    """
    if not math.isfinite(float(loss)):
        raise DivergedError(f"loss must be finite, got {float(loss)} at step {step}; try an lr below {config.lr:g}")
    return f"loss {float(loss):.3f}"


def check_finite(trained: Mapping[str, Tensor], config: FinetuneConfig) -> None:
    """Refuse weights that are not finite; DivergedError names the first."""
    for name, tensor in trained.items():
        if not bool(tensor.isfinite().all()):
            raise DivergedError(f"{name}: weights must be finite after training; try an lr below {config.lr:g}")
