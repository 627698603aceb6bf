r"""One AdamW step (Loshchilov & Hutter 2019, algorithm 2) of the SELECTED entries of many tensors, in place.

With g the gradient times ``clip / grad_scale`` (negated to maximize), for selected entries only::

    p *= 1 - lr weight_decay
    m += (1 - beta1) (g - m)
    v  = beta2 v + (1 - beta2) g^2
    p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

These are the operations of ``torch.optim.AdamW``, in their order; what it computes for the selected entries
(talos' AdaptW with a mask, too) is what comes out here. All other entries keep their bits: no decay either.

m and v are compact: they exist for selected entries only, float32. The gradient is dense like its parameter, or
compact. Parameters below float32 take one of three ways: rounded to nearest; rounded at random, unbiased
(``streams``); or copied from compact float32 `masters`, which are what is updated.

Cost: the cache lines that hold selected entries of p and g, and 16 bytes a selected entry for m and v. Not
differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops._sparse_step import check_step, gradient_factor, step_numbers, step_reference
from taskarith_fast.ops.selection import Selection

SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] masters, "
    "Tensor[] items, Tensor[] offsets, int[] streams, Tensor? clip, Tensor? grad_scale, Tensor? found_inf, "
    "float lr, float beta1, float beta2, float eps, float weight_decay, Tensor[] steps, "
    "int step, bool maximize) -> ()"
)


def sparse_adamw_step_reference(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    masters: list[Tensor], items: list[Tensor], offsets: list[Tensor], streams: list[int], clip: Tensor | None,
    grad_scale: Tensor | None, found_inf: Tensor | None, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, steps: list[Tensor], step: int, maximize: bool,
) -> None:  # fmt: skip
    """The formula in float32, tensor by tensor."""
    if found_inf is not None and found_inf.item():
        return

    numbers = step_numbers(steps, step, len(params))

    def update(i: int, p: Tensor, g: Tensor) -> None:
        m, v, step = exp_avgs[i], exp_avg_sqs[i], numbers[i]
        p.mul_(1 - lr * weight_decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
        p.addcdiv_(m, denominator, value=-(lr / (1 - beta1**step)))

    factor = gradient_factor(clip, grad_scale, maximize)
    step_reference(params, grads, masters, items, offsets, streams, numbers, factor, update)


def sparse_adamw_step_fake(*args: object) -> None:
    return None


OP = define_op("sparse_adamw_step_", SCHEMA, sparse_adamw_step_reference, sparse_adamw_step_fake, triton=True)


def sparse_adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    selections: Sequence[Selection],
    *,
    lr: float,
    step: int | Sequence[Tensor],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
    masters: Sequence[Tensor] = (),
    streams: Sequence[int] = (),
    clip: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Update the selected entries of L parameters and their moments in place.

    Args:
        params: L contiguous tensors of any shapes, float32, bfloat16 or float16.
        grads: L gradients, each shaped like its parameter or compact [count]; float32, bfloat16 or float16.
        exp_avgs: First moments m, float32 [count] each.
        exp_avg_sqs: Second moments v, float32 [count] each.
        selections: What is selected in each parameter.
        lr: Learning rate.
        step: Number of this step, from 1 on; or L float32 tensors of one entry on the parameters' device: how many
            steps each parameter has behind it. A GPU reads them itself, so that a captured graph counts on.
        betas: Decay of the moments.
        eps: Added to the denominator.
        weight_decay: Decoupled decay, times `lr`.
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
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, **({"masters": masters} if masters else {})}
    numbers = check_step(params, grads, states, selections, streams, step)
    OP(
        list(params), list(grads), list(exp_avgs), list(exp_avg_sqs), list(masters),
        [s.items for s in selections], [s.offsets for s in selections], list(streams), clip, grad_scale, found_inf,
        lr, *betas, eps, weight_decay, *numbers, maximize, backend=backend,
    )  # fmt: skip
