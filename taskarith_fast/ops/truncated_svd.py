r"""The leading singular triplets of each matrix of a batch: ``D ~ U diag(S) Vh`` with r columns.

Two methods, both through the Gram matrix G of the shorter side, N = min(m, n), M = max(m, n):

* ``exact``: G in float64, Householder reduction to tridiagonal form, the r largest eigenvalues by bisection,
  their vectors by inverse iteration, then the other side as one product.
  Cost: M N^2 + 4/3 N^3 + 2 N^2 r + 2 M N r FLOPs.
* ``certified`` (default): the same in float32, about twice as fast. It then bounds what it lost: with
  theta_i = s_i^2 and r_i = ||D^T D v_i - theta_i v_i||, computed from D itself, the energy missed is at most
  ``sum_i min(r_i, r_i^2 / (theta_i - lambda_{r+1}))``, and half of that over the energy left out bounds the
  excess ``||D - D_r|| / optimum - 1``. A matrix whose bound is above 1e-5 is decomposed by ``exact``; one
  whose spectrum shows beforehand that float32 cannot reach it, at once. So are ranks from N / 2 and N <= 64.

D_r minimises ||D - D_r||_F; where s_r = s_{r+1} the minimiser is not unique, and two exact methods may
differ.

On GPUs both methods are one, in float64: G and its eigenvectors, batched, and a QR of D times the leading ones, which
gives the other side. The host waits once for cuSOLVER and once for the check of NaN. By default torch multiplies
(cuBLAS), after a copy of D in float64; ``backend="triton"`` reads D as it is and computes half of the symmetric G.

Not differentiable: the derivative grows as 1 / (s_i^2 - s_j^2), and nothing here needs it. One matrix is
computed by one thread, so results do not depend on the thread count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops._contract import define_op

SCHEMA = "(Tensor matrices, int rank, str svd) -> (Tensor, Tensor, Tensor, Tensor)"

METHODS = ("certified", "exact")


def truncated_svd_reference(matrices: Tensor, rank: int, svd: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LAPACK's full decomposition in float64, cut off; the last result, the excess bound [L], is zero."""
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    return svd_result(u[..., :rank], s[..., :rank], vh[..., :rank, :])


def truncated_svd_composed(matrices: Tensor, rank: int, svd: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole batch by torch's products."""
    return svd_result(*dense_factors(matrices.double(), rank))


def dense_factors(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """`leading_factors` of float64 matrices [L, m, n] by torch's products."""
    wide = matrices.shape[1] < matrices.shape[2]
    tall = matrices.mT if wide else matrices
    return leading_factors(tall.mT @ tall, lambda v: tall @ v, rank, wide=wide)


def leading_factors(
    gram: Tensor, project: Callable[[Tensor], Tensor], rank: int, *, wide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """U [L, m, r], S [L, r] and Vh [L, r, n] of L matrices that are seen through products; signs as they come.

    Args:
        gram: G = A^T A, shape [L, N, N], float64, with A [L, M, N] the matrices, or their transposes if they are wide.
        project: From V, shape [L, N, r], contiguous, to A V, shape [L, M, r], float64.
        rank: r.
        wide: Whether A are transposes.

    Raises:
        RuntimeError: If a matrix holds NaN or Inf.
    """
    v = torch.linalg.eigh(gram).eigenvectors[..., -rank:].flip(-1).contiguous()
    q, r = torch.linalg.qr(project(v))  # the columns are orthogonal but for rounding: r is diagonal
    s = r.diagonal(dim1=-2, dim2=-1)
    if not bool(s.isfinite().all()):
        raise RuntimeError("truncated_svd: a matrix holds NaN or Inf")
    q = q * torch.where(s < 0, -1.0, 1.0)[:, None]
    s = s.abs().cummin(-1).values  # rounding may exchange equal ones
    s = torch.where(s > torch.finfo(s.dtype).eps * gram.shape[-1] * s[:, :1], s, 0.0)
    return (v, s, q.mT) if wide else (q, s, v.mT)


def svd_result(u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In float32, the largest entry of every row of Vh positive, with an excess of zero."""
    flip = torch.where(vh.gather(-1, vh.abs().argmax(-1, keepdim=True)) < 0, -1.0, 1.0)  # [L, r, 1]
    u, vh = u * flip.mT, vh * flip
    return u.float().contiguous(), s.float().contiguous(), vh.float().contiguous(), s.new_zeros(len(s))


def truncated_svd_fake(matrices: Tensor, rank: int, svd: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length, m, n = matrices.shape
    shapes = ((length, m, rank), (length, rank), (length, rank, n))
    u, s, vh = (matrices.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return u, s, vh, matrices.new_empty(length, dtype=torch.float64)


OP = define_op(
    "truncated_svd", SCHEMA, truncated_svd_reference, truncated_svd_fake, triton=True, composed=truncated_svd_composed
)


def truncated_svd(
    matrices: Tensor, rank: int, *, svd: str = "certified", backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the r largest singular values and their vectors, matrix by matrix.

    The entry of largest magnitude of every row of Vh is positive, which fixes the signs. Singular values
    descend; those that vanish at float64 rounding of the largest are 0, with orthonormal vectors even so. The
    excess residual over the optimum is below 1e-5 wherever float32 factors can express it, that is where
    the optimum is above about 1e-5 ||D||.

    Args:
        matrices: Shape [L, m, n] or [m, n], float32, bfloat16 or float16, finite.
        rank: r, between 1 and min(m, n).
        svd: "certified" (float32 with a bound on its error, else float64) or "exact" (float64).
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        U, shape [L, m, r], S, shape [L, r], Vh, shape [L, r, n], all float32; without L for one matrix.

    Raises:
        ArgumentError: If a shape, dtype or the rank is out of its domain, or a gradient is asked for.
        BackendError: If `backend` is absent.
        RuntimeError: If a matrix holds NaN or Inf.
    """
    if matrices.dim() not in (2, 3):
        raise ArgumentError(f"matrices must have shape [L, m, n] or [m, n], got {list(matrices.shape)}")
    if matrices.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ArgumentError(f"matrices must be float32, bfloat16 or float16, got {matrices.dtype}")
    check_rank("rank", rank, matrices.shape)
    check_method(svd)
    refuse_gradient("truncated_svd", matrices)
    u, s, vh, _ = OP(matrices if matrices.dim() == 3 else matrices[None], rank, svd, backend=backend)
    return (u, s, vh) if matrices.dim() == 3 else (u[0], s[0], vh[0])


def check_rank(name: str, rank: int, shape: torch.Size) -> None:
    """Refuse a rank outside [1, min(m, n)] for a matrix of this shape."""
    if not 1 <= rank <= min(shape[-2:]):
        raise ArgumentError(f"{name} must be in [1, {min(shape[-2:])}] for a matrix {list(shape[-2:])}, got {rank}")


def check_method(svd: str) -> None:
    """Refuse a name that is not a method of decomposition."""
    if svd not in METHODS:
        raise ArgumentError(f"svd must be one of {', '.join(METHODS)}; got {svd!r}")


def refuse_gradient(name: str, *tensors: Tensor) -> None:
    """Refuse to cut a gradient silently."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise ArgumentError(f"{name} is not differentiable; call it under torch.no_grad() or detach its arguments")
