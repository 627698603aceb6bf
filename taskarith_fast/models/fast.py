"""Give models of other libraries the dense-linear route, and norms and activations in one pass each, without touching
their parameters or names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from taskarith_fast.models.layers import Linear, RmsNorm, TanhGelu, attend
from taskarith_fast.ops.linear import linear

Model = TypeVar("Model", bound=nn.Module)


def use_fast_linear(model: Model) -> Model:
    """Route every plain `nn.Linear` and `nn.MultiheadAttention` of a model through `ops.linear`, in place.

    T5's norm and tanh GELU, which transformers composes of elementwise functions, become torch's. Only the class of a
    layer changes: parameters, names, hooks and values (to rounding) stay. Subclasses of the two are left alone, they
    may mean something else.

    Args:
        model: Any module.

    Returns:
        The same module.
    """
    for module in model.modules():
        if (fast := _FAST.get(f"{type(module).__module__}.{type(module).__qualname__}")) is not None:
            module.__class__ = fast
    return model


@contextmanager
def fast_linear(model: nn.Module) -> Iterator[None]:
    """Let a model's dense layers go through `ops.linear` inside a with block only, see `use_fast_linear`."""
    before = [(module, type(module)) for module in model.modules()]
    use_fast_linear(model)
    try:
        yield
    finally:
        for module, kind in before:
            if type(module) is not kind:
                module.__class__ = kind


class SelfAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with a short road for plain self-attention, and torch's for everything else."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attend as nn.MultiheadAttention does; the short road returns (output, None)."""
        if not self._is_plain(query, key, value, *args, **kwargs):
            return super().forward(query, key, value, *args, **kwargs)
        x = query if self.batch_first else query.transpose(0, 1)
        y = attend(linear(x, self.in_proj_weight, self.in_proj_bias), self.num_heads)
        y = linear(y, self.out_proj.weight, self.out_proj.bias)
        return (y if self.batch_first else y.transpose(0, 1)), None

    def _is_plain(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> bool:
        masked = any(kwargs.get(name) is not None for name in ("attn_mask", "key_padding_mask"))
        return (
            query is key
            and key is value
            and query.dim() == 3
            and not (args or masked or kwargs.get("is_causal"))
            and kwargs.get("need_weights") is False
            and self.in_proj_weight is not None
            and self.bias_k is None
            and not self.add_zero_attn
            and not (self.training and self.dropout)
        )


# By name, so that a library is not imported for it.
_FAST: dict[str, type[nn.Module]] = {
    "torch.nn.modules.linear.Linear": Linear,
    "torch.nn.modules.activation.MultiheadAttention": SelfAttention,
    "transformers.models.t5.modeling_t5.T5LayerNorm": RmsNorm,
    "transformers.activations.NewGELUActivation": TanhGelu,
}
