"""Cases of per-sample and compact weight gradients: one MLP matrix of ViT-B/32, 3072 x 768, a batch of 16 images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contest import Contest
from taskarith_fast import ops
from taskarith_fast.ops.linear import linear_route

_SAMPLES, _TOKENS, _O, _K = 16, 50, 3072, 768
_FLOPS = 2 * _SAMPLES * _TOKENS * _O * _K


def _operands() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, grad_y = (torch.randn(_SAMPLES, _TOKENS, n, generator=generator) for n in (_K, _O))
    return x, grad_y.mul_(0.1)


def _weight_gradient(x: Tensor, grad_y: Tensor, route: str) -> Callable[[], Tensor]:
    """The dense weight gradient of the batch, by autograd through `ops.linear`."""
    weight = torch.zeros(_O, _K, requires_grad=True)
    with linear_route(route):
        y = ops.linear(x, weight)
    return lambda: torch.autograd.grad(y, weight, grad_y, retain_graph=True)[0]


def fisher() -> Contest:
    """The Fisher diagonal against per-sample gradients in plain torch, and against the gradient of the batch alone."""
    x, grad_y = _operands()
    total, one = torch.zeros(_O, _K), torch.empty(_O, _K)

    def sample_by_sample() -> None:
        for inputs, cotangents in zip(x, grad_y, strict=True):
            torch.mm(cotangents.t(), inputs, out=one)
            total.addcmul_(one, one)

    def two_at_a_time() -> None:
        for inputs, cotangents in zip(x.split(2), grad_y.split(2), strict=True):
            total.add_(torch.bmm(cotangents.transpose(1, 2), inputs).square_().sum(0))

    return Contest(
        ours={"taskarith_fast": lambda: ops.fisher_diag_(total, x, grad_y)},
        baselines={
            "mm + addcmul_ by sample": sample_by_sample,
            "bmm of two samples": two_at_a_time,
            "batch gradient, F.linear": _weight_gradient(x, grad_y, "linear"),
            "batch gradient, conv1x1": _weight_gradient(x, grad_y, "conv1x1"),
        },
        flops=_FLOPS,
    )


def masked(density: float, rows: bool = False) -> Contest:
    """The gradient at selected entries against the whole gradient and a gather.

    Args:
        density: Fraction of the entries that is selected.
        rows: Select whole rows, not single entries.
    """
    x, grad_y = _operands()
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(_O, 1 if rows else _K, generator=generator) < density).expand(_O, _K)
    bits = ops.pack_bits([mask])[0]
    starts = ops.row_starts(bits, (_O, _K))
    index = mask.flatten().nonzero().flatten()
    values = torch.zeros(len(index))

    def gathered(route: str) -> Callable[[], Tensor]:
        whole = _weight_gradient(x, grad_y, route)
        return lambda: values.add_(whole().flatten().index_select(0, index))

    return Contest(
        ours={"taskarith_fast": lambda: ops.masked_wgrad_(values, x, grad_y, bits, starts)},
        baselines={"F.linear, then gather": gathered("linear"), "conv1x1, then gather": gathered("conv1x1")},
        flops=_FLOPS,
    )
