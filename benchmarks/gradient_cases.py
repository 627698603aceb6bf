"""Cases of per-sample and compact weight gradients of one dense layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import costs, shapes
from benchmarks.contest import Contest
from taskarith_fast import ops
from taskarith_fast.ops.linear import linear_route


@dataclass(frozen=True)
class Layer:
    """A dense layer and its batch."""

    samples: int
    tokens: int
    outputs: int
    inputs: int
    dtype: torch.dtype = torch.float32

    @property
    def flops(self) -> int:
        return costs.weight_gradient_flops(self.samples * self.tokens, self.outputs, self.inputs)

    def operands(self) -> tuple[Tensor, Tensor]:
        """x [B, S, K] and grad_y [B, S, O]."""
        generator = shapes.generator(0)
        x, grad_y = (
            torch.randn(self.samples, self.tokens, n, generator=generator) for n in (self.inputs, self.outputs)
        )
        return x.to(self.dtype), grad_y.mul_(0.1).to(self.dtype)


_ROUTES = {"linear": "F.linear", "conv1x1": "conv1x1"}
VIT_B32_MLP = Layer(samples=16, tokens=50, outputs=3072, inputs=768)


def _weight_gradient(x: Tensor, grad_y: Tensor, route: str) -> Callable[[], Tensor]:
    """The dense weight gradient of the batch, by autograd through `ops.linear`."""
    weight = torch.zeros(grad_y.shape[-1], x.shape[-1], dtype=x.dtype, requires_grad=True)
    with linear_route(route):
        y = ops.linear(x, weight)
    return lambda: torch.autograd.grad(y, weight, grad_y, retain_graph=True)[0]


def fisher(layer: Layer = VIT_B32_MLP) -> Contest:
    """The Fisher diagonal against per-sample gradients in plain torch, and against the gradient of the batch alone."""
    x, grad_y = layer.operands()
    total, one = torch.zeros(layer.outputs, layer.inputs), torch.empty(layer.outputs, layer.inputs, dtype=layer.dtype)

    def sample_by_sample() -> None:
        for inputs, cotangents in zip(x, grad_y, strict=True):
            torch.mm(cotangents.t(), inputs, out=one)
            total.addcmul_(one, one)

    def two_at_a_time() -> None:
        for inputs, cotangents in zip(x.split(2), grad_y.split(2), strict=True):
            total.add_(torch.bmm(cotangents.transpose(1, 2), inputs).square_().sum(0))

    routes = ("linear", "conv1x1") if x.is_cpu else ("linear",)
    return Contest(
        ours={"taskarith_fast": lambda: ops.fisher_diag_(total, x, grad_y)},
        baselines={
            "mm + addcmul_ by sample": sample_by_sample,
            "bmm of two samples": two_at_a_time,
            **{f"batch gradient, {_ROUTES[route]}": _weight_gradient(x, grad_y, route) for route in routes},
        },
        flops=layer.flops,
    )


def masked(density: float, rows: bool = False, layer: Layer = VIT_B32_MLP) -> Contest:
    """The gradient at selected entries against the whole gradient and a gather.

    Args:
        density: Fraction of the entries that is selected.
        rows: Select whole rows, not single entries.
        layer: The layer.
    """
    x, grad_y = layer.operands()
    shape = layer.outputs, layer.inputs
    mask = torch.rand(shape[0], 1 if rows else shape[1], generator=shapes.generator(1)) < density
    mask = mask.expand(shape)
    bits = ops.pack_bits([mask])[0]
    starts = ops.row_starts(bits, shape)
    index = mask.flatten().nonzero().flatten()
    values = torch.zeros(len(index))

    def gathered(route: str) -> Callable[[], Tensor]:
        whole = _weight_gradient(x, grad_y, route)
        return lambda: values.add_(whole().flatten().index_select(0, index))

    routes = ("linear", "conv1x1") if x.is_cpu else ("linear",)
    return Contest(
        ours={"taskarith_fast": lambda: ops.masked_wgrad_(values, x, grad_y, bits, starts)},
        baselines={f"{_ROUTES[route]}, then gather": gathered(route) for route in routes},
        flops=layer.flops,
    )


def masked_step(density: float, layer: Layer = VIT_B32_MLP) -> Contest:
    """Gradient and AdamW step of the selected entries in one, against one after the other, compact and dense."""
    x, grad_y = layer.operands()
    shape = layer.outputs, layer.inputs
    mask = torch.rand(shape, generator=shapes.generator(1)) < density
    bits, selection = ops.pack_bits([mask])[0], ops.Selection.of(mask)
    starts = ops.row_starts(bits, shape)
    weight = torch.zeros(shape, dtype=layer.dtype)
    m, v = torch.zeros(selection.count), torch.zeros(selection.count)
    dense = torch.zeros(shape, dtype=layer.dtype, requires_grad=True)
    optimizer = torch.optim.AdamW([dense], lr=1e-5, fused=True)
    whole = _weight_gradient(x, grad_y, "linear")

    def one_after_the_other() -> None:
        grad = ops.masked_wgrad(x, grad_y, bits, starts)
        ops.sparse_adamw_step_([weight], [grad], [m], [v], [selection], lr=1e-5, step=10)

    def dense_step() -> None:
        dense.grad = whole()
        optimizer.step()

    return Contest(
        ours={
            "taskarith_fast": lambda: ops.masked_wgrad_adamw_step_(
                weight, m, v, x, grad_y, bits, starts, lr=1e-5, step=10
            )
        },
        baselines={
            "masked_wgrad, then sparse_adamw_step_": one_after_the_other,
            "F.linear, then torch fused AdamW": dense_step,
        },
        flops=layer.flops,
    )
