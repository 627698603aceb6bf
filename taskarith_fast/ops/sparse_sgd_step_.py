r"""One step of SGD with momentum of the SELECTED entries of many tensors, in place.

With g the gradient times ``clip / grad_scale`` (negated to maximize), for selected entries only::

    g += weight_decay p
    b  = momentum b + (1 - dampening) g        (b = g in the first step)
    p -= lr b                                  (Nesterov: p -= lr (g + momentum b))

as ``torch.optim.SGD``; all other entries keep their bits. The buffer b is compact, float32; without momentum there
is none. Gradients, parameters below float32, masters and streams are as in ``sparse_adamw_step_``. Not
differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._sparse_step import check_step, gradient_factor, step_numbers, step_reference
from taskarith_fast.ops.selection import Selection

SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] buffers, Tensor(c!)[] masters, Tensor[] items, "
    "Tensor[] offsets, int[] streams, Tensor? clip, Tensor? grad_scale, Tensor? found_inf, float lr, float momentum, "
    "float dampening, float weight_decay, bool nesterov, Tensor[] steps, int step, bool maximize) -> ()"
)


def sparse_sgd_step_reference(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], masters: list[Tensor], items: list[Tensor],
    offsets: list[Tensor], streams: list[int], clip: Tensor | None, grad_scale: Tensor | None,
    found_inf: Tensor | None, lr: float, momentum: float, dampening: float, weight_decay: float, nesterov: bool,
    steps: list[Tensor], step: int, maximize: bool,
) -> None:  # fmt: skip
    """The formula in float32, tensor by tensor."""
    if found_inf is not None and found_inf.item():
        return

    numbers = step_numbers(steps, step, len(params))

    def update(i: int, p: Tensor, g: Tensor) -> None:
        g = g.add(p, alpha=weight_decay)
        if buffers:
            b = buffers[i].mul_(momentum).add_(g, alpha=1 if numbers[i] == 1 else 1 - dampening)
            g = g.add(b, alpha=momentum) if nesterov else b
        p.add_(g, alpha=-lr)

    factor = gradient_factor(clip, grad_scale, maximize)
    step_reference(params, grads, masters, items, offsets, streams, numbers, factor, update)


def sparse_sgd_step_fake(*args: object) -> None:
    return None


OP = define_op("sparse_sgd_step_", SCHEMA, sparse_sgd_step_reference, sparse_sgd_step_fake, triton=True)


def sparse_sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    selections: Sequence[Selection],
    *,
    lr: float,
    step: int | Sequence[Tensor],
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    masters: Sequence[Tensor] = (),
    streams: Sequence[int] = (),
    clip: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Update the selected entries of L parameters and their momentum in place.

    Args:
        params: L contiguous tensors of any shapes, float32, bfloat16 or float16.
        grads: L gradients, each shaped like its parameter or compact [count]; float32, bfloat16 or float16.
        buffers: Momentum b, float32 [count] each, zero before the first step; none where `momentum` is 0.
        selections: What is selected in each parameter.
        lr: Learning rate.
        step: Number of this step, from 1 on; or L float32 tensors of one entry on the parameters' device: how many
            steps each parameter has behind it. A GPU reads them itself, so that a captured graph counts on.
        momentum: Decay of the buffer.
        dampening: Fraction of the gradient that the buffer does not take.
        weight_decay: L2 decay, added to the gradient.
        nesterov: Nesterov's momentum; needs momentum and no dampening.
        maximize: Ascend instead.
        masters: None, or L float32 [count]: the weights that are updated; `params` become their rounded copies.
        streams: None, or L keys of 64 bits for random rounding of bfloat16 and float16 parameters.
        clip: float32, one entry: factor of every gradient.
        grad_scale: float32, one entry: divides every gradient.
        found_inf: float32, one entry: nothing happens unless it is 0.
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Raises:
        ArgumentError: If lengths, sizes, dtypes or layouts do not fit together.
        BackendError: If `backend` is absent.
    """
    if bool(buffers) != (momentum != 0 and bool(params)):
        raise ArgumentError(f"buffers must be given if and only if momentum is not 0, got momentum={momentum}")
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ArgumentError(f"nesterov needs momentum and no dampening, got {momentum} and {dampening}")
    states = {
        **({"buffers": buffers} if buffers else {}),
        **({"masters": masters} if masters else {}),
    }
    numbers = check_step(params, grads, states, selections, streams, step)
    OP(
        list(params), list(grads), list(buffers), list(masters), [s.items for s in selections],
        [s.offsets for s in selections], list(streams), clip, grad_scale, found_inf, lr, momentum, dampening,
        weight_decay, nesterov, *numbers, maximize, backend=backend,
    )  # fmt: skip
