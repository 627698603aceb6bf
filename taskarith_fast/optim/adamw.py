"""AdamW on selected entries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.masks import Masks
from taskarith_fast.ops.sparse_adamw_step_ import OP
from taskarith_fast.optim.base import SparseOptimizer
from taskarith_fast.optim.entries import Batch, Precision


class SparseAdamW(SparseOptimizer):
    """AdamW (Loshchilov & Hutter 2019) that updates, and holds moments for, the selected entries only.

    For them the values are those of ``torch.optim.AdamW``, up to its rounding; all others keep their bits, without
    decay too. At most ``10 * density + 1/32`` bytes of state a weight instead of 8. A parameter may carry its
    gradient for selected entries only as an attribute ``compact_grad``, shape [count], which is used in place of
    ``grad``.

    Args:
        named_parameters: (name, parameter) pairs, as ``model.named_parameters()``, or groups: dicts with such pairs
            under "params" and options of their own. Frozen parameters without a mask are left out.
        masks: What is trained; every mask must name a parameter of its shape.
        lr: Learning rate.
        betas: Decay of the moments.
        eps: Added to the denominator.
        weight_decay: Decoupled decay, times `lr`.
        master_weights: Keep compact float32 copies of selected bfloat16 and float16 weights; None: unless
            `stochastic_rounding`.
        stochastic_rounding: Round bfloat16 and float16 weights at random, unbiased, instead.
        maximize: Ascend.
        nonfinite: What a NaN or infinite gradient of a selected entry does, unless a GradScaler looks after that:
            "propagate" as in torch, "error", or "skip" the step and count it. The latter two read the gradients twice.
        seed: Of the random rounding.

    Raises:
        ArgumentError: If an argument is out of its domain, a parameter that requires a gradient has no mask, a mask
            has no parameter, or nothing at all is selected.
    """

    def __init__(
        self,
        named_parameters: Iterable[Any],
        masks: Masks,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        master_weights: bool | None = None,
        stochastic_rounding: bool = False,
        maximize: bool = False,
        nonfinite: str = "propagate",
        seed: int = 0,
    ) -> None:
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ArgumentError(f"{name} must not be negative, got {value}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ArgumentError(f"betas must be two numbers in [0, 1), got {betas}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        precision = Precision(master_weights, stochastic_rounding, seed)
        super().__init__(named_parameters, masks, defaults, precision, nonfinite)

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _update(self, group: dict[str, Any], batch: Batch, scalars: tuple[Tensor | None, ...]) -> None:
        moments = batch.state("exp_avg"), batch.state("exp_avg_sq")
        options = (float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"])
        OP(
            batch.params,
            batch.grads,
            *moments,
            *batch.lists,
            *scalars,
            *options,
            batch.state("step"),
            1,
            group["maximize"],
        )
