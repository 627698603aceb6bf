"""SGD with momentum on selected entries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.masks import Masks
from taskarith_fast.ops.sparse_sgd_step_ import OP
from taskarith_fast.optim.base import SparseOptimizer
from taskarith_fast.optim.entries import Batch, Precision


class SparseSGD(SparseOptimizer):
    """SGD that updates, and holds momentum for, the selected entries only; otherwise ``torch.optim.SGD``.

    Args:
        named_parameters: As in SparseAdamW.
        masks: What is trained.
        lr: Learning rate.
        momentum: Decay of the momentum buffer; 0: none is held.
        dampening: Fraction of the gradient that the buffer does not take.
        weight_decay: L2 decay, added to the gradient.
        nesterov: Nesterov's momentum; needs momentum and no dampening.
        master_weights: As in SparseAdamW, like the remaining ones.
        stochastic_rounding: As in SparseAdamW.
        maximize: Ascend.
        nonfinite: "propagate", "error" or "skip".
        seed: Of the random rounding.

    Raises:
        ArgumentError: As SparseAdamW.
    """

    def __init__(
        self,
        named_parameters: Iterable[Any],
        masks: Masks,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        master_weights: bool | None = None,
        stochastic_rounding: bool = False,
        maximize: bool = False,
        nonfinite: str = "propagate",
        seed: int = 0,
    ) -> None:
        for name, value in {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ArgumentError(f"{name} must not be negative, got {value}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ArgumentError(f"nesterov needs momentum and no dampening, got {momentum} and {dampening}")
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize,
        }  # fmt: skip
        precision = Precision(master_weights, stochastic_rounding, seed)
        super().__init__(named_parameters, masks, defaults, precision, nonfinite)

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _update(self, group: dict[str, Any], batch: Batch, scalars: tuple[Tensor | None, ...]) -> None:
        buffers = batch.state("momentum_buffer") if group["momentum"] else []
        names = ("momentum", "dampening", "weight_decay", "nesterov")
        options = (float(group["lr"]), *(group[name] for name in names))
        OP(
            batch.params,
            batch.grads,
            buffers,
            *batch.lists,
            *scalars,
            *options,
            batch.state("step"),
            1,
            group["maximize"],
        )
