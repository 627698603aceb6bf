"""T5's relative position bias: one table for all layers of a stack, added to the scores of every text alike.

The model looks the bias up once for a whole batch, so that the samples' gradients would be summed before anyone sees
them. Here the attention layer that holds the table is given the same bias, written out for every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError

_CLASSES = ("T5Attention", "MT5Attention")


class RelativeBias:
    """The table of one stack, by its name in the whole model."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    def look_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """The ids [L S] and the bias [B, H, L, S] that the layer would add; None if it is given one."""
        if kwargs.get("position_bias") is not None:
            return None
        ids: list[Tensor] = []
        module: Any = self.module
        handle = module.relative_attention_bias.register_forward_pre_hook(lambda _, inputs: ids.append(inputs[0]))
        try:
            batch, length = args[0].shape[:2]
            bias = module.compute_bias(length, length, device=args[0].device)
        finally:
            handle.remove()
        return ids[0].flatten(), bias.expand(batch, -1, -1, -1)


def find_relative_biases(model: nn.Module, wanted: Callable[[str], bool]) -> Iterator[RelativeBias]:
    """Yield the tables of a model that are wanted, `wanted` being asked by their names.

    Raises:
        ArgumentError: If a table is wanted of a model that uses it in another way.
    """
    for prefix, module in model.named_modules():
        name = f"{prefix}.relative_attention_bias.weight".lstrip(".")
        if not getattr(module, "has_relative_attention_bias", False) or not wanted(name):
            continue
        if type(module).__name__ not in _CLASSES:
            raise ArgumentError(
                f"{name}: no rule gives its per-sample gradient in {type(module).__name__}; leave it out of names"
            )
        yield RelativeBias(module, name)
