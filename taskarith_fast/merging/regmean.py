"""RegMean: the weights closest to every task's own on the task's own inputs (Jin 2023, eq. 2).

    W = (sum_t W_t G_t) (sum_t G_t)^-1      for weights [o, k], with G_t = X_t^T X_t / n the Gram matrix of the inputs
    G_t <- a G_t + (1 - a) diag(G_t)        the off-diagonal entries shrunk, a = `off_diagonal`

It is computed as the first task's weights plus what a linear system adds to them, which saves one product of T, scaled
to a unit diagonal: S = a C + (1 - a) I, C a correlation matrix. So S is positive definite for a < 1 whatever the Grams;
the column of an input that is always zero is the average. Only a near 1 can leave S singular (fewer inputs than k, or
dependent ones).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, CheckpointError, check_choice
from taskarith_fast.merging.arithmetic import average
from taskarith_fast.merging.common import State, num_threads
from taskarith_fast.merging.statistics import Statistics
from taskarith_fast.merging.streaming import Streaming

_ROWS = 128  # of a weight, worked on by one thread
_ASYMMETRY = 1e-4  # of the largest entry: far above the rounding of a product, far below anything else


def gram_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The Gram matrix of a weight [o, k], or of a patch embedding [o, c, p, p] with k = c p p: [k, k]."""
    return (math.prod(shape[1:]),) * 2 if len(shape) >= 2 and 0 not in shape else None


GRAMS = Statistics("grams", "ta.gram_matrices", gram_shape, whole=True)


def regmean(
    base: State,
    finetuned: Sequence[State],
    *,
    grams: Sequence[State] = (),
    off_diagonal: float = 0.9,
    singular: str = "shrink",
) -> dict[str, Tensor]:
    """Solve for the weights of dense layers that fit all tasks' outputs best, average everything else.

    Args:
        base: The pre-trained model; it gives the keys and the buffers.
        finetuned: T fine-tuned models, their weights stored [o, k] as by `nn.Linear`.
        grams: T mappings name of a weight -> Gram matrix of its inputs, [k, k], from ``ta.gram_matrices``. All have the
            same names; the other tensors are averaged. A fused query, key and value have one Gram.
        off_diagonal: a, the factor of the off-diagonal entries, in [0, 1]; the paper's is 0.9, the code's default 1.
        singular: What to do about a sum of Grams that float32 cannot tell from a singular one, which only a near 1
            leaves: "shrink" lowers a to 1 - 2 k 2^-24 for that weight; "error" names it.

    Returns:
        The merged state, in the key order of `base`; solved in float64, rounded once.

    Raises:
        ArgumentError: If a parameter is out of its domain.
        CheckpointError: If models or Grams do not fit together, a Gram is no Gram matrix, or, with singular="error",
            a sum of Grams is singular.
    """
    if not 0.0 <= off_diagonal <= 1.0:
        raise ArgumentError(f"off_diagonal must be in [0, 1], got {off_diagonal}")
    check_choice("singular", singular, ("shrink", "error"))
    merged = average(base, finetuned)
    floats = {name: tensor for name, tensor in merged.items() if tensor.is_floating_point()}
    with torch.no_grad():
        for name in GRAMS.check(floats, grams, len(finetuned), {}):
            for t, one in enumerate(grams):
                _check_gram(one[name], name, t)
            system = _System(merged[name], [m[name] for m in finetuned], [one[name] for one in grams])
            merged[name] = system.solve(system.shrinkage(off_diagonal, singular, name))
    return merged


REGMEAN_STREAMING = Streaming("element", statistics=GRAMS, heavy=True)


class _System:
    """sum_t (W_t - W_0) G_t and sum_t G_t of one weight, off-diagonal and diagonal entries apart, scaled.

    Every row of the weight is one right-hand side. Blocks of rows are spread over the threads, and each is computed by
    one, so that results do not depend on their number.
    """

    def __init__(self, mean: Tensor, models: Sequence[Tensor], grams: Sequence[Tensor]) -> None:
        self._mean = mean
        self._first, *others = (model.detach().flatten(1) for model in models)  # [o, k]
        total = grams[0].detach().to(mean.device, torch.float64, copy=True)
        self._full, self._own = (torch.zeros_like(self._first, dtype=torch.float64) for _ in range(2))
        for matrix, gram in zip(others, grams[1:], strict=True):
            delta, g = matrix.double() - self._first, gram.detach().to(mean.device, torch.float64)
            self._each_block(partial(self._add_product, delta, g))
            self._own.addcmul_(delta, g.diagonal())
            total += g
        power = total.diagonal()
        self._scale = torch.where(power > 0, power.rsqrt(), 0.0)  # [k]
        self._correlation = total.mul_(self._scale[:, None]).mul_(self._scale)

    def shrinkage(self, off_diagonal: float, singular: str, name: str) -> float:
        """`off_diagonal`, or less where the system would have an eigenvalue below the rounding of float32 Grams."""
        least = len(self._scale) * 2.0**-24  # bounds the spectral norm of the rounding of a correlation matrix
        if off_diagonal <= 1 - 2 * least:
            return off_diagonal
        _, failed = self._factor(off_diagonal, least)
        if failed and singular == "error":
            raise CheckpointError(
                f"{name}: the sum of grams is singular to float32, its eigenvalues must be above {least:.0e} of the "
                f"diagonal; take more inputs than {len(self._scale)}, or off_diagonal below 1"
            )
        return 1 - 2 * least if failed else off_diagonal

    def solve(self, off_diagonal: float) -> Tensor:
        factor, _ = self._factor(off_diagonal)
        out = self._mean.flatten(1).clone()
        live = self._scale > 0

        def solve_rows(rows: slice) -> None:
            right = self._own[rows].lerp(self._full[rows], off_diagonal).mul_(self._scale)
            solution = torch.cholesky_solve(right.mT, factor).mT.mul(self._scale).add_(self._first[rows])
            out[rows] = torch.where(live, solution.to(out.dtype), out[rows])

        self._each_block(solve_rows)
        return out.reshape(self._mean.shape)

    def _add_product(self, delta: Tensor, gram: Tensor, rows: slice) -> None:
        self._full[rows].addmm_(delta[rows], gram)

    def _factor(self, off_diagonal: float, shift: float = 0.0) -> tuple[Tensor, bool]:
        """The Cholesky factor of S - shift I, and whether there is none."""
        system = self._correlation * off_diagonal
        system.diagonal().fill_(1 - shift)
        with num_threads(1):
            factor, failed = torch.linalg.cholesky_ex(system)
        return factor, bool(failed)

    def _each_block(self, work: Callable[[slice], object]) -> None:
        blocks = [slice(first, first + _ROWS) for first in range(0, len(self._first), _ROWS)]
        workers = min(torch.get_num_threads(), len(blocks))
        with num_threads(1), ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(work, blocks):
                pass


def _check_gram(gram: Tensor, name: str, task: int) -> None:
    low, high = (float(x) for x in gram.detach().aminmax())  # NaN passes through both
    if not (math.isfinite(low) and math.isfinite(high)) or gram.diagonal().amin() < 0:
        raise CheckpointError(f"{name}: grams[{task}] must be finite with a diagonal that is not negative")
    limit = _ASYMMETRY * max(-low, high)
    for rows in (slice(first, first + _ROWS) for first in range(0, len(gram), _ROWS)):
        if (gram[rows, rows.start :] - gram[rows.start :, rows].mT).abs().amax() > limit:
            raise CheckpointError(f"{name}: grams[{task}] must be symmetric, X^T X / n of the layer's inputs")
