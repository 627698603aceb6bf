"""The layers of our vision transformer, with open_clip's parameter names, and of T5."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskarith_fast.ops.linear import linear


class Linear(nn.Linear):
    """`nn.Linear` whose product goes through `ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias)


class RmsNorm(nn.Module):
    """T5's norm: division by the root mean square and a factor a channel, statistics in the wider of float32 and x."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape [..., d] to the same shape."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)  # type: ignore[arg-type]


class TanhGelu(nn.Module):
    """GELU by its tanh approximation."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x of any shape to the same shape."""
        return F.gelu(x, approximate="tanh")


class Attention(nn.Module):
    """Multi-head self-attention; rows [0, d), [d, 2d), [2d, 3d) of in_proj are query, key, value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each sequence of x, shape [B, S, d]; the result has the same shape."""
        qkv = linear(x, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(attend(qkv, self.heads))


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Return softmax(q k^T / sqrt(d/H)) v of each head, heads side by side.

    Args:
        qkv: Queries, keys and values one after the other, shape [B, S, 3 d].
        heads: Number of heads H, a divisor of d.

    Returns:
        Shape [B, S, d].
    """
    batch, tokens, width = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v)  # [B, H, S, d/H]
    return y.transpose(1, 2).reshape(batch, tokens, width // 3)


class Mlp(nn.Module):
    """Two dense layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = Linear(width, hidden)
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape [..., d] to the same shape."""
        return self.c_proj(F.gelu(self.c_fc(x)))


class LayerScale(nn.Module):
    """One learned factor a channel on a residual branch, added to the trunk in the same pass."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, trunk: Tensor, branch: Tensor) -> Tensor:
        """Return trunk + gamma * branch, all of shape [..., d]."""
        return torch.addcmul(trunk, branch, self.gamma)


class Residual(nn.Module):
    """The residual sum of a model without LayerScale; it has no parameters."""

    def forward(self, trunk: Tensor, branch: Tensor) -> Tensor:
        """Return trunk + branch."""
        return trunk + branch


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, layer_scale: float | None) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.ls_1 = Residual() if layer_scale is None else LayerScale(width, layer_scale)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)
        self.ls_2 = Residual() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape [B, S, d] to the same shape."""
        x = self.ls_1(x, self.attn(self.ln_1(x)))
        return self.ls_2(x, self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """The blocks, one after the other."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape [B, S, d] to the same shape."""
        for block in self.resblocks:
            x = block(x)
        return x
