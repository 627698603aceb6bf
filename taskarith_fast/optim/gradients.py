"""A parameter's gradient, dense or compact, and norms of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.selected_square_sums import selected_square_sums
from taskarith_fast.ops.selection import Selection
from taskarith_fast.optim.entries import Entry


def has_compact(parameter: Tensor) -> bool:
    """Whether `parameter` carries the gradient of its selected entries only."""
    return getattr(parameter, "compact_grad", None) is not None


def gradient_of(parameter: Tensor, entry: Entry, scaled: bool = False) -> Tensor | None:
    """``compact_grad`` [count] if there is one, else ``grad``; None if there is neither.

    Args:
        parameter: A trained parameter.
        entry: What is known about it.
        scaled: Whether a GradScaler has checked the gradients; it knows dense ones only.

    Raises:
        ArgumentError: If the gradient is sparse, or compact and of the wrong size or under a GradScaler.
    """
    if not has_compact(parameter):
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ArgumentError(f"{entry.name}: the gradient must be strided, got {parameter.grad.layout}")
        return parameter.grad
    compact: Tensor = parameter.compact_grad  # type: ignore[attr-defined]
    if scaled:
        raise ArgumentError(f"{entry.name} has a compact_grad, which GradScaler cannot check; use bfloat16 without it")
    if compact.shape != (entry.selection.count,):
        raise ArgumentError(
            f"{entry.name}: compact_grad must have shape [{entry.selection.count}], got {list(compact.shape)}"
        )
    return compact


def square_sums(gradients: list[tuple[Tensor, Selection]], over: str) -> Tensor:
    """Sums of squares over the "selected" or over "all" entries, shape [L], float64, on the first one's device."""
    if over == "all":
        gradients = [(grad, Selection.every(grad)) for grad, _ in gradients]
    devices = list(dict.fromkeys(grad.device for grad, _ in gradients))
    if len(devices) == 1:
        return selected_square_sums([grad for grad, _ in gradients], [selection for _, selection in gradients])
    out = torch.zeros(len(gradients), dtype=torch.float64, device=devices[0] if devices else None)
    for device in devices:
        there = [i for i, (grad, _) in enumerate(gradients) if grad.device == device]
        sums = selected_square_sums([gradients[i][0] for i in there], [gradients[i][1] for i in there])
        out[there] = sums.to(out.device)
    return out
