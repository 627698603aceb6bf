"""A patch embedding, that is a strided convolution of images, and its derivative along a direction.

    y = conv(x, W) + b,    dy = conv(dx, W) + conv(x, dW) + db

Patches that lie side by side are the rows of one matrix, and their convolution is a dense layer: the tangent goes by
`dual_linear`, with its routes, its kernel and its gradient. y is torch's convolution, so that it equals the plain
model's to the bit; so are other convolutions, whose backward pass keeps dW and dx, too.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from taskarith_fast.ops._dual import add_tangents, check_pair, plain
from taskarith_fast.ops.dual_linear import dual_linear, linear_tangent


def dual_patch_embed(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    *,
    backend: str = "auto",
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Embed the patches of images and of their tangent.

    Args:
        x: Images, shape [B, C, H, W].
        dx: Tangent of x, or None.
        weight: Shape [D, C, p, q].
        bias: Shape [D], or None.
        dweight: Tangent of the weight, or None.
        dbias: Tangent of the bias, or None.
        backend: "auto", or "reference" or "triton" for `dual_linear`'s registered operator.
        options: stride, padding, dilation, groups of F.conv2d; the stride is the size of a patch if not given.

    Returns:
        y of shape [B, D, H / p, W / q], without gradient, and dy, differentiable by the tangents; None if there is
        no tangent.

    Raises:
        ArgumentError: If a tangent does not have the shape of its tensor, or under forward-mode AD.
        BackendError: If `backend` is absent.
    """
    check_pair("dual_patch_embed", x=(x, dx), weight=(weight, dweight), bias=(bias, dbias))
    options = {"stride": weight.shape[-2:], **options}
    x, weight, bias = x.detach(), weight.detach(), plain(bias)
    if backend == "auto" or not _side_by_side(weight, **options):
        y = F.conv2d(x, weight, bias, **options)
        return y, patch_tangent(y, x, dx, weight, dweight, dbias, **options)
    rows, steps, matrix, step = _as_dense(x, dx, weight, dweight)
    y, dy = dual_linear(rows, steps, matrix, bias, step, dbias, backend=backend)
    return y.movedim(-1, 1), None if dy is None else dy.movedim(-1, 1)


def patch_tangent(
    y: Tensor, x: Tensor, dx: Any, weight: Tensor, dweight: Any, dbias: Any, **options: Any
) -> Tensor | None:
    """dy alone, like y; arguments as dual_patch_embed's, a stride of 1 if not given."""
    if (dx is not None or dweight is not None) and _side_by_side(weight, **options):
        rows, steps, matrix, step = _as_dense(x, dx, weight, dweight)
        dy = linear_tangent(rows, steps, matrix, step, dbias)
        return None if dy is None else dy.movedim(-1, 1)
    dy = None if dx is None else F.conv2d(dx, weight, None, **options)
    dy = dy if dweight is None else add_tangents(dy, F.conv2d(x, dweight, None, **options))
    return dy if dbias is None else add_tangents(dy, dbias.to(y.dtype).view(-1, 1, 1).expand_as(y))


def _side_by_side(weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> bool:
    """Whether the patches of a convolution neither overlap nor lie apart."""
    within = padding == "valid" or (padding != "same" and _pair(padding) == (0, 0))
    return within and _pair(dilation) == (1, 1) and groups == 1 and _pair(stride) == tuple(weight.shape[-2:])


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _as_dense(x: Tensor, dx: Any, weight: Tensor, dweight: Any) -> tuple[Any, ...]:
    """Patches as rows, shape [B, H / p, W / q, C p q], and weights as matrices [D, C p q]."""
    height, width = weight.shape[-2:]

    def rows(images: Tensor) -> Tensor:
        whole = images[:, :, : images.shape[2] // height * height, : images.shape[3] // width * width]
        return whole.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5).flatten(3)

    return rows(x), None if dx is None else rows(dx), weight.flatten(1), None if dweight is None else dweight.flatten(1)
