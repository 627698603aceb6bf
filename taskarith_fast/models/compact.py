r"""Weight gradients of dense layers at selected entries only: no dense gradient is ever allocated.

Training a part of a weight needs the gradient of that part. Inside ``compact_gradients`` a masked dense layer takes
its weight as a constant, so that autograd computes the gradients of input and bias as ever; the identity behind its
output sees the gradient that comes back and hands it, with the layer's input, to ``ops.masked_wgrad_``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from taskarith_fast.errors import ArgumentError
from taskarith_fast.masks import Masks
from taskarith_fast.models.fast import fast_linear
from taskarith_fast.ops.fisher_diag_ import STORAGE
from taskarith_fast.ops.linear import Compute, around_linear
from taskarith_fast.ops.masked_wgrad_ import masked_wgrad, masked_wgrad_, row_starts

OnGradient = Callable[[nn.Parameter], Any]


@contextmanager
def compact_gradients(
    model: nn.Module, masks: Mapping[str, Tensor], *, on_gradient: OnGradient | None = None
) -> Iterator[None]:
    """Let the masked dense weights of a model get ``compact_grad`` instead of ``grad`` inside a with block.

    ``weight.compact_grad`` holds the gradient of the selected entries in row-major order, shape [count], float32; it
    adds up over backward passes until it is set to None, as the sparse optimizers' ``zero_grad`` does. A weight without
    a selected entry gets no gradient, and none is computed. Everything else, such as biases, norms and masked tensors
    that no dense layer uses, gets its ordinary gradient. Layers are found by the memory of their weights: plain
    nn.Linear and nn.MultiheadAttention, and whatever calls ``ops.linear``. Autocast and activation checkpointing work;
    DDP does not see compact gradients, torch.compile and float64 layers keep dense ones.

    Args:
        model: Any module; its dense layers go through ``ops.linear`` inside the block (``models.fast.fast_linear``).
        masks: Name of a parameter -> its mask (True = selected), bool, the parameter's shape; a ``Masks`` is the lean
            form. Parameters without one keep dense gradients.
        on_gradient: Called in the backward pass with each parameter whose compact gradient is complete for this pass,
            for an optimizer that steps it there and sets ``compact_grad`` to None.

    Raises:
        ArgumentError: If a mask's name is no parameter of the model or its shape is another. In the backward pass: if
            a weight is used outside dense layers too, so that a part of its gradient is dense.
    """
    packed = masks if isinstance(masks, Masks) else Masks.pack(masks)
    weights = _Weights(model, packed)
    with ExitStack() as stack:
        for weight in weights.by_place.values():
            stack.callback(weight.watch(on_gradient))
        stack.enter_context(fast_linear(model))
        stack.enter_context(around_linear(weights.around))
        yield


@dataclass(frozen=True, eq=False)
class _Weight:
    """A masked parameter, shape [o, ...]: its packed mask, and the selected entries before each row."""

    name: str
    parameter: nn.Parameter
    mask: Tensor
    row_starts: Tensor
    count: int

    def is_whole(self, weight: Tensor) -> bool:
        """Whether a layer's weight [o, k] is the parameter, entry for entry."""
        own = self.parameter
        return weight.is_contiguous() and weight.shape[:1] == own.shape[:1] and weight.numel() == own.numel()

    def add(self, x: Tensor, grad_y: Tensor) -> None:
        """Add the gradient of one use to ``compact_grad``."""
        before = getattr(self.parameter, "compact_grad", None)
        if before is None:
            self.parameter.compact_grad = masked_wgrad(x, grad_y, self.mask, self.row_starts)  # type: ignore[attr-defined]
        else:
            masked_wgrad_(before, x, grad_y, self.mask, self.row_starts)

    def watch(self, on_gradient: OnGradient | None) -> Callable[[], None]:
        """Look at every pass's end for this parameter; returns what ends it."""
        node = get_gradient_edge(self.parameter).node

        def complete(grads: tuple[Tensor | None, ...]) -> None:
            if getattr(self.parameter, "compact_grad", None) is None:
                return
            if grads[0] is not None:
                raise ArgumentError(f"{self.name} is used outside dense layers too; leave it out of the masks")
            if on_gradient is not None:
                on_gradient(self.parameter)

        handle = node.register_prehook(complete)
        # The parameter does not keep its node alive; without it the hook would be lost.
        return functools.partial(_release, handle, node)


def _release(handle: Any, node: Any) -> None:
    handle.remove()


class _Weights:
    """The masked weights of one model, found by where their memory begins."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        own = dict(model.named_parameters())
        self.by_place: dict[int, _Weight] = {}
        for name in masks:
            if name not in own:
                raise ArgumentError(
                    f"{name}: the mask fits no parameter of the model, which has {next(iter(own), '')}, ..."
                )
            parameter, shape = own[name], masks.shape(name)
            if tuple(parameter.shape) != shape:
                raise ArgumentError(f"{name}: the mask must have shape {list(parameter.shape)}, got {list(shape)}")
            if parameter.dim() > 1 and parameter.numel() and parameter.requires_grad:
                bits = masks.packed(name).to(parameter.device)
                weight = _Weight(name, parameter, bits, row_starts(bits, shape), masks.count(name))
                self.by_place[parameter.data_ptr()] = weight

    def around(self, compute: Compute, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Stand around ``ops.linear``, see ``around_linear``."""
        masked = self.by_place.get(weight.data_ptr()) if torch.is_grad_enabled() and weight.requires_grad else None
        if masked is None or x.dtype not in STORAGE or not masked.is_whole(weight):
            return compute(x, weight, bias)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # what the layer would do, so that one copy is kept
        if x.requires_grad and masked.count:
            x = _HoldBack.apply(x, masked.parameter)
        y = compute(x, weight.detach(), bias)
        return _SeeGradient.apply(y, masked.parameter, x, masked) if masked.count else y


class _HoldBack(torch.autograd.Function):
    """The identity in front of a dense layer: the weight's uses end once the gradient by the layer's input is there.

    An optimizer that steps the weight in the backward pass would otherwise change it before it is read.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        return grad_x, None


class _SeeGradient(torch.autograd.Function):
    """The identity behind a dense layer. The weight is among its inputs so that autograd knows when its uses end."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, parameter: Tensor, x: Tensor, weight: _Weight) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x)
        ctx.mark_dirty(y)  # y stays the layer's own output, not a view that nothing may change in place
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.weight.add(x, grad_y)
        return grad_y, None, None, None
