"""What the optimizers' steps over selected entries have in common: checks, and the plain-PyTorch walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._lists import STORAGE_TYPES
from taskarith_fast.ops.dare import philox
from taskarith_fast.ops.selection import Selection, flat_index


def step_reference(
    params: list[Tensor],
    grads: list[Tensor],
    masters: list[Tensor],
    items: list[Tensor],
    offsets: list[Tensor],
    streams: list[int],
    numbers: list[int],
    factor: Tensor | float,
    update: Callable[[int, Tensor, Tensor], None],
) -> None:
    """Gather, ``update(i, p, g)`` in place on float32 values [count], scatter; tensor i takes step numbers[i]."""
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        index = flat_index(items[i], offsets[i], param.numel())
        flat, g = param.view(-1), grad.reshape(-1)
        p = masters[i] if masters else flat[index].float()
        update(i, p, (g if g.numel() == index.numel() else g[index]).float() * factor)
        if streams and param.dtype != torch.float32:
            p = round_at_random(p, param.dtype, streams[i], numbers[i])
        flat.index_copy_(0, index, p.to(param.dtype))


def gradient_factor(clip: Tensor | None, grad_scale: Tensor | None, maximize: bool) -> Tensor | float:
    """What every gradient is multiplied with: clipping, the inverse of the loss scale, the sign."""
    factor: Tensor | float = -1.0 if maximize else 1.0
    if clip is not None:
        factor = clip * factor
    return factor if grad_scale is None else factor / grad_scale


def step_numbers(steps: list[Tensor], step: int, length: int) -> list[int]:
    """The number of this step for each of `length` tensors; `steps` says what was done before, or is empty."""
    return [int(done) + 1 for done in steps] or [step] * length


def round_at_random(x: Tensor, dtype: torch.dtype, stream: int, step: int) -> Tensor:
    """Round up or down so that the expectation is `x`; value j takes half-word j mod 8 of Philox block j / 8.

    Args:
        x: float32, shape [count].
        dtype: bfloat16 or float16.
        stream: Key of the generator, 64 bits.
        step: Third counter word.

    Returns:
        Values of `dtype` as float32, shape [count].
    """
    j = torch.arange(x.numel(), device=x.device)
    words = philox(torch.arange((x.numel() + 7) // 8, device=x.device), step & 0xFFFFFFFF, stream)
    random = words.reshape(-1)[j // 2] >> (16 * (j % 2)) & 0xFFFF
    if dtype == torch.bfloat16:
        bits = x.contiguous().view(torch.int32) + random.to(torch.int32)
        return torch.where(x.isfinite(), (bits & -65536).view(torch.float32), x)
    quantum = torch.exp2(torch.frexp(x).exponent.clamp(min=-13).double() - 11)
    units = x.abs().double() / quantum
    up = units - units.floor() > random / 65536
    rounded = ((units.floor() + up) * quantum).copysign(x.double()).float()
    return torch.where(x.abs() < 65536, rounded, x)


def check_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: dict[str, Sequence[Tensor]],
    selections: Sequence[Selection],
    streams: Sequence[int],
    step: int | Sequence[Tensor],
) -> tuple[list[Tensor], int]:
    """Check the lists of a step; `states` holds every list of compact float32 tensors, by its argument's name.

    Returns:
        What the operators take for `step`: `steps`, none or one a tensor, and the number of the step.

    Raises:
        ArgumentError: If lengths, sizes, dtypes or layouts do not fit together.
    """
    steps, step = ([], step) if isinstance(step, int) else (list(step), 1)
    lists = {"grads": grads, "selections": selections, **states, **({"streams": streams} if streams else {})}
    lists |= {"step": steps} if steps else {}
    for name, found in lists.items():
        if len(found) != len(params):
            raise ArgumentError(f"{name} must have {len(params)} entries like params, got {len(found)}")
    if step < 1:
        raise ArgumentError(f"step must be 1 or more, got {step}")
    if any(x.dtype != torch.float32 or x.numel() != 1 for x in steps):
        raise ArgumentError("step must be a number, or float32 tensors of one entry")
    if streams and "masters" in states:
        raise ArgumentError("streams and masters exclude each other: master weights need no random rounding")
    for i, (param, grad, selection) in enumerate(zip(params, grads, selections, strict=True)):
        if param.dtype not in STORAGE_TYPES or grad.dtype not in STORAGE_TYPES or not param.is_contiguous():
            raise ArgumentError(
                f"params[{i}] and grads[{i}] must be float32, bfloat16 or float16, params contiguous; "
                f"got {param.dtype} and {grad.dtype}"
            )
        count = selection.count
        if selection.numel != param.numel() or grad.numel() not in (param.numel(), count):
            raise ArgumentError(
                f"grads[{i}] must have {param.numel()} or {count} entries and selections[{i}] {param.numel()}, "
                f"got {grad.numel()} and {selection.numel}"
            )
        for name, state in states.items():
            if state[i].dtype != torch.float32 or state[i].shape != (count,) or not state[i].is_contiguous():
                raise ArgumentError(
                    f"{name}[{i}] must be contiguous float32 [{count}], got {state[i].dtype} {list(state[i].shape)}"
                )
    return steps, step
