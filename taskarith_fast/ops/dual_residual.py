"""A residual sum, with or without LayerScale, and its derivative along a direction.

y = t + gamma z,    dy = dt + gamma dz + dgamma z
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskarith_fast.ops._dual import add_tangents, check_pair, plain


def dual_residual(
    trunk: Tensor,
    dtrunk: Tensor | None,
    branch: Tensor,
    dbranch: Tensor | None,
    gamma: Tensor | None = None,
    dgamma: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Add a branch to the trunk, and the branch's tangent to the trunk's.

    Args:
        trunk: Shape [..., D].
        dtrunk: Tangent of the trunk, or None.
        branch: Shape [..., D].
        dbranch: Tangent of the branch, or None.
        gamma: LayerScale, shape [D]; None is 1.
        dgamma: Tangent of gamma, or None.

    Returns:
        y of shape [..., D], without gradient, and dy, differentiable by the tangents; None if there is no tangent.

    Raises:
        ArgumentError: If a tangent does not have the shape of its tensor, or under forward-mode AD.
    """
    check_pair("dual_residual", trunk=(trunk, dtrunk), branch=(branch, dbranch), gamma=(gamma, dgamma))
    trunk, branch, gamma = trunk.detach(), branch.detach(), plain(gamma)
    if gamma is None:
        return trunk + branch, add_tangents(dtrunk, dbranch)
    dy = dtrunk
    for factors in ((dbranch, gamma), (branch, dgamma)):
        if factors[0] is not None and factors[1] is not None:
            dy = factors[0] * factors[1] if dy is None else torch.addcmul(dy, factors[0], factors[1])
    return torch.addcmul(trunk, branch, gamma), dy
