r"""Gram matrices of the inputs of every dense layer, as RegMean needs them (Jin 2023, section 3).

    G = X^T X / n,   X [n, k] the inputs of one layer: every token of every image, n in all

A fused query, key and value projection has one, that of its own input. The product of each batch is added in `dtype`
to a running mean: with n_b rows in the largest of B batches, an entry is within (n_b + 4 B) 2^-24 of the mean of the
|x_i x_j| in float32; n does not enter. Only blocks on and below the diagonal are multiplied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.inputs import call, moved
from taskarith_fast.loops.evaluate import evaluating
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.models.fast import fast_linear
from taskarith_fast.ops.linear import Compute, around_linear

_COLUMNS = 256  # of a Gram matrix, multiplied at once


def gram_matrices(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    names: Collection[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Run a model on batches and collect the Gram matrix of the inputs of its dense layers.

    Seen are `nn.Linear`, the projections of `nn.MultiheadAttention` without a mask, and the layers of this package's
    models, its patch embedding among them; not seen are convolutions and classes derived from the two.

    Args:
        model: Called on images [B, 3, S, S], or whatever it takes, in evaluation mode; it is left as it was.
        batches: Inputs (a tensor, or texts as a dict), or tuples that begin with one, such as (images, labels).
        names: Weights wanted; None takes every one that is seen.
        dtype: torch.float32, or torch.float64 for twice the memory.

    Returns:
        Name of a weight [o, k] -> [k, k] on the model's device, in the order of the model's parameters. Memory: one a
        layer.

    Raises:
        ArgumentError: If there is no batch, or a name is not that of a dense layer's weight that was used.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    collected = _Grams(model, names, dtype)
    device, count = device_of(model), 0
    with evaluating(model), fast_linear(model), around_linear(collected.around):
        for batch in batches:
            call(model, moved(batch if isinstance(batch, (Tensor, Mapping)) else batch[0], device))
            count += 1
    if not count:
        raise ArgumentError("batches must hold at least one batch, got none")
    return collected.finish()


class _Grams:
    """Running means X^T X / n, by the weight's name; finds a weight by its memory, so that a view of it will do."""

    def __init__(self, model: nn.Module, names: Collection[str] | None, dtype: torch.dtype) -> None:
        self._wanted = None if names is None else set(names)
        self._name = {_place(parameter): name for name, parameter in model.named_parameters()}
        self._dtype = dtype
        self._gram: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}

    def around(self, compute: Compute, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        name = self._name.get(_place(weight))
        if name is not None and x.numel() and (self._wanted is None or name in self._wanted):
            with torch.inference_mode(False), torch.no_grad():  # the result is an ordinary tensor
                self._add(name, x.reshape(-1, x.shape[-1]).to(self._dtype))
        return compute(x, weight, bias)

    def finish(self) -> dict[str, Tensor]:
        """The matrices, their upper halves filled in."""
        unseen = sorted((self._wanted or set()) - self._gram.keys())
        if unseen:
            seen = ", ".join(list(self._gram)[:3]) or "none"
            raise ArgumentError(
                f"names must be weights of dense layers that the model uses, got {unseen[0]}; seen: {seen}"
            )
        for gram in self._gram.values():
            for begin in range(0, len(gram), _COLUMNS):
                end = begin + _COLUMNS
                gram[begin:end, end:] = gram[end:, begin:end].mT
        return {name: self._gram[name] for name in self._name.values() if name in self._gram}

    def _add(self, name: str, x: Tensor) -> None:
        k = x.shape[1]
        if name not in self._gram:
            self._gram[name], self._rows[name] = x.new_zeros(k, k), 0
        gram, before = self._gram[name], self._rows[name]
        self._rows[name] = total = before + len(x)
        for begin in range(0, k, _COLUMNS):
            end = min(k, begin + _COLUMNS)
            lower = gram[begin:, begin:end]
            lower.addmm_(x[:, begin:].mT, x[:, begin:end], beta=before / total, alpha=1 / total)


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()
