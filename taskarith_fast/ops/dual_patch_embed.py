"""A patch embedding, that is a strided convolution of images, and its derivative along a direction.

    y = conv(x, W) + b,    dy = conv(dx, W) + conv(x, dW) + db

Images have no tangent, so the usual case is one convolution more than without. Gradients as in dual_linear, by torch's
convolution, which keeps dW and dx beside W and x. It has no kernel of its own: patches do not overlap, so each
convolution is one matrix product, which torch hands to oneDNN or cuDNN.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from taskarith_fast.ops._dual import add_tangents, check_pair, plain


def dual_patch_embed(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Embed the patches of images and of their tangent.

    Args:
        x: Images, shape [B, C, H, W].
        dx: Tangent of x, or None.
        weight: Shape [D, C, p, p].
        bias: Shape [D], or None.
        dweight: Tangent of the weight, or None.
        dbias: Tangent of the bias, or None.
        options: stride, padding, dilation, groups of F.conv2d; the stride is the size of a patch if not given.

    Returns:
        y of shape [B, D, H / p, W / p], without gradient, and dy, differentiable by the tangents; None if there is
        no tangent.

    Raises:
        ArgumentError: If a tangent does not have the shape of its tensor, or under forward-mode AD.
    """
    check_pair("dual_patch_embed", x=(x, dx), weight=(weight, dweight), bias=(bias, dbias))
    options = {"stride": weight.shape[-2:], **options}
    x, weight, bias = x.detach(), weight.detach(), plain(bias)
    dy = None if dx is None else F.conv2d(dx, weight, None, **options)
    if dweight is not None:
        dy = add_tangents(dy, F.conv2d(x, dweight, None, **options))
    y = F.conv2d(x, weight, bias, **options)
    if dbias is not None:
        dy = add_tangents(dy, dbias.to(y.dtype).view(-1, 1, 1).expand_as(y))
    return y, dy
