r"""Merges as functions of their coefficients, for methods that learn them: write the merge, differentiate it.

    theta[l](c) = origin[l] + sum_t c[t, l] delta[t, l]          d loss / d c[t, l] = <d loss / d theta[l], delta[t, l]>

No autograd runs through the merge: it is linear, so a backward pass to the merged weights and T dot products a
tensor are the whole gradient (Yang 2024, eq. 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from taskarith_fast.errors import CheckpointError
from taskarith_fast.merging.arithmetic import average
from taskarith_fast.merging.cart import is_cart_matrix, low_rank_deltas
from taskarith_fast.merging.common import State
from taskarith_fast.ops.weighted_sum import weighted_sum
from taskarith_fast.ops.weighted_sum_backward import weighted_sum_backward

_GROUP = 1 << 22  # weights merged at once: what a merge needs beyond its destination


class CoefficientMerge(Protocol):
    """A merge of T models with L coefficients each."""

    names: tuple[str, ...]
    """The L tensors that have a coefficient a task."""

    def write(self, coefficients: Tensor, into: Mapping[str, Tensor]) -> None:
        """Put the merge for `coefficients`, shape [T, L], into the tensors of a model, in place."""

    def gradient(self, grads: Mapping[str, Tensor]) -> Tensor:
        """d loss / d coefficients, float64 [T, L], from d loss / d theta by name; a name left out counts as zero."""


class DeltaMerge:
    """Task vectors added to the base, ``theta_0 + sum_t c[t, l] (theta_t - theta_0)``; none is materialised.

    Args:
        base: The pre-trained model theta_0; every floating tensor has coefficients.
        finetuned: T fine-tuned models with the same names, shapes, dtypes and devices.
    """

    def __init__(self, base: State, finetuned: Sequence[State]) -> None:
        self.names = tuple(name for name, tensor in base.items() if tensor.is_floating_point())
        self._base = [base[name] for name in self.names]
        self._finetuned = [[model[name] for name in self.names] for model in finetuned]

    @torch.no_grad()
    def write(self, coefficients: Tensor, into: Mapping[str, Tensor]) -> None:
        """See `CoefficientMerge`; each tensor is rounded once from float64."""
        for part in _groups([tensor.numel() for tensor in self._base]):
            models = [model[part] for model in self._finetuned]
            sums = weighted_sum(self._base[part], models, coefficients[:, part])
            for name, total in zip(self.names[part], sums, strict=True):
                into[name].copy_(total)

    @torch.no_grad()
    def gradient(self, grads: Mapping[str, Tensor]) -> Tensor:
        """See `CoefficientMerge`; one read of the gradient, the base and every model."""
        found = [i for i, name in enumerate(self.names) if name in grads]
        models = [[model[i] for i in found] for model in self._finetuned]
        dots = weighted_sum_backward([grads[self.names[i]] for i in found], [self._base[i] for i in found], models)
        out = dots.new_zeros(len(models), len(self.names))
        out[:, found] = dots
        return out


class LowRankMerge:
    """Low-rank parts added to the average, ``theta_avg + sum_t c[t, l] SVD_r(theta_t - theta_avg)``.

    Matrices inside transformer blocks have coefficients, all other tensors are averaged. The low-rank parts stay
    factors: T r (m + n) floats a matrix, and 2 m n T r FLOPs to merge or to differentiate it.

    Args:
        base: The pre-trained model; it cancels out, and gives the names.
        finetuned: T fine-tuned models, not kept.
        rank_ratio, svd: As in `cart`.

    Raises:
        CheckpointError: If no tensor is such a matrix.
    """

    def __init__(self, base: State, finetuned: Sequence[State], *, rank_ratio: float, svd: str) -> None:
        self._average = average(base, finetuned)
        self.names = tuple(name for name, mean in self._average.items() if is_cart_matrix(name, mean))
        if not self.names:
            raise CheckpointError("base must have matrices inside transformer blocks, got none; use method adamerging")
        self._left, self._right = [], []  # [m, T, r] and [T r, n]
        for name in self.names:
            mean, left, right = low_rank_deltas(name, self._average[name], finetuned, rank_ratio=rank_ratio, svd=svd)
            self._average[name] = mean
            self._left.append(left.transpose(0, 1).contiguous())
            self._right.append(right.flatten(0, 1))

    @torch.no_grad()
    def write(self, coefficients: Tensor, into: Mapping[str, Tensor]) -> None:
        """See `CoefficientMerge`; matrices are computed in float32."""
        columns = dict(zip(self.names, coefficients.float().unbind(1), strict=True))
        factors = dict(zip(self.names, zip(self._left, self._right, strict=True), strict=True))
        for name, mean in self._average.items():
            if name in factors:
                left, right = factors[name]
                mean = torch.addmm(mean, (left * columns[name][:, None]).flatten(1), right)
            into[name].copy_(mean)

    @torch.no_grad()
    def gradient(self, grads: Mapping[str, Tensor]) -> Tensor:
        """See `CoefficientMerge`: ``<G, (U S)_t V_t> = <G V_t^T, (U S)_t>``."""
        tasks = self._left[0].shape[1]
        out = self._left[0].new_zeros(tasks, len(self.names), dtype=torch.float64)
        for i, (name, left, right) in enumerate(zip(self.names, self._left, self._right, strict=True)):
            if name in grads:
                seen = (grads[name].float() @ right.T).view_as(left)
                out[:, i] = (seen * left).sum((0, 2), dtype=torch.float64)
        return out


def _groups(sizes: Sequence[int]) -> Iterator[slice]:
    """Runs of neighbours that sum to at most _GROUP, or are one tensor."""
    first, total = 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > _GROUP:
            yield slice(first, i)
            first, total = i, 0
        total += size
    if sizes:
        yield slice(first, len(sizes))
