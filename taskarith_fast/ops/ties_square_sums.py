r"""Add up ``|d_t|^2`` over the kept deltas of a part of a model: the norms of TIES' "normfrac" and "normmass".

The sums run block by block (16384 elements of a tensor) in float64, so that parts of whole blocks, in order,
give the bytes of ties_merge on the whole. One read of all inputs. Not differentiable: trimming is a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskarith_fast.ops._contract import define_op
from taskarith_fast.ops.ties_merge import kept_deltas

SCHEMA = "(Tensor[] base, Tensor[] finetuned, Tensor thresholds, Tensor cutoffs, Tensor start, str scope) -> Tensor"


def ties_square_sums_reference(
    base: list[Tensor], finetuned: list[Tensor], thresholds: Tensor, cutoffs: Tensor, start: Tensor, scope: str
) -> Tensor:
    """Sums [T] in float64 after this part; `start` holds those before it."""
    if not base:
        return start.clone()
    _, deltas = kept_deltas(base, finetuned, thresholds, cutoffs, scope)
    return start + deltas.square().sum(1).to(start.device)


def ties_square_sums_fake(
    base: list[Tensor], finetuned: list[Tensor], thresholds: Tensor, cutoffs: Tensor, start: Tensor, scope: str
) -> Tensor:
    return torch.empty_like(start)


OP = define_op("ties_square_sums", SCHEMA, ties_square_sums_reference, ties_square_sums_fake, triton=True)


def ties_square_sums(
    base: list[Tensor],
    finetuned: list[list[Tensor]],
    thresholds: Tensor,
    cutoffs: Tensor,
    start: Tensor,
    *,
    scope: str = "global",
    backend: str = "auto",
) -> Tensor:
    """Each task's sum of squared kept deltas, added to that of the parts before.

    Args:
        base: L tensors, whole or cut.
        finetuned: T lists of L tensors like `base`.
        thresholds: As for ties_merge, shape [S, T].
        cutoffs: As for ties_merge, counted in the part, shape [S, T], int64.
        start: The sums so far, shape [T], float64, on the device of `base`.
        scope: "global", "tensor" or "row".
        backend: "auto", "reference", "cpu", "cuda", "triton" or "cuda_emulated".

    Returns:
        The sums, shape [T], float64.

    Raises:
        BackendError: If `backend` is absent.
    """
    lists = [tensor for task in finetuned for tensor in task]
    return OP(base, lists, thresholds, cutoffs, start, scope, backend=backend)
