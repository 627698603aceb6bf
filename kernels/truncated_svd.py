"""truncated_svd in Triton: Gram matrices and projections; torch finds the eigenvectors and the QR."""

from __future__ import annotations

from taskarith_fast.kernels._gram import Differences, factors_of
from torch import Tensor

from taskarith_fast.ops.truncated_svd import svd_result


def truncated_svd_triton(matrices: Tensor, rank: int, svd: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op's own signature: `matrices` [L, m, n]; both methods are one, in float64."""
    return svd_result(*factors_of([Differences((matrices,))], rank))
