"""A tensor together with its tangents, and the way both go through a model's own forward.

A Pair stands for ``x`` and, for T directions at once, ``dx_1 .. dx_T``. It has no memory of its own: every torch
function that meets one is looked up in the table of rules (`tangent.rules`), which computes the result and its tangents
with the pair operators. A function without a rule raises; no tangent is ever dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from taskarith_fast.errors import ArgumentError

Tangents = tuple[Tensor | None, ...]


class NoRuleError(ArgumentError):
    """A model does something that has no rule; the message names it."""


class Pair(Tensor):
    """A value and its tangents, one for each direction; None is a tangent of zeros.

    Args:
        value: The tensor.
        tangents: T tensors of its shape, or None.
    """

    value: Tensor
    tangents: Tangents

    @staticmethod
    def __new__(cls, value: Tensor, tangents: Tangents) -> Pair:
        return Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=value.device)

    def __init__(self, value: Tensor, tangents: Tangents) -> None:
        self.value, self.tangents = value, tangents

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        from taskarith_fast.tangent.rules import apply

        return apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise NoRuleError(f"{func} has no rule for tangents")


def value_of(x: Any) -> Any:
    """`x` with every Pair in it, also in lists and tuples, replaced by its value."""
    return _replaced(x, lambda pair: pair.value)


def tangent_of(x: Any, t: int) -> Tensor | None:
    """The tangent of `x` in direction t; None if there is none."""
    return x.tangents[t] if isinstance(x, Pair) else None


def directions(args: Any) -> int:
    """T, from the first Pair in the arguments."""
    return next(len(pair.tangents) for pair in pairs_in(args))


def pairs_in(x: Any) -> Iterable[Pair]:
    """Every Pair in a structure of lists, tuples and dicts."""
    if isinstance(x, Pair):
        yield x
    elif isinstance(x, (list, tuple, dict)):
        for item in x.values() if isinstance(x, dict) else x:
            yield from pairs_in(item)


def paired(value: Tensor, tangents: Iterable[Tensor | None]) -> Tensor:
    """A Pair, or the plain value if no direction has a tangent."""
    tangents = tuple(tangents)
    return Pair(value, tangents) if any(t is not None for t in tangents) else value


def each(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function on the values, then, once for every direction, on the tangents of the first argument.

    For functions that are linear in it: views, sums, selections. Results may be tuples.
    """
    first, *rest = args
    value = call(first.value, *rest, **kwargs)
    tangents = [None if t is None else call(t, *rest, **kwargs) for t in first.tangents]
    if isinstance(value, Tensor):
        return paired(value, tangents)
    columns = zip(*(len(value) * [None] if t is None else t for t in tangents), strict=True)
    return type(value)(paired(v, ts) for v, ts in zip(value, columns, strict=True))


def _replaced(x: Any, of: Callable[[Pair], Any]) -> Any:
    if isinstance(x, Pair):
        return of(x)
    if type(x) in (list, tuple):
        return type(x)(_replaced(item, of) for item in x)
    return {key: _replaced(item, of) for key, item in x.items()} if type(x) is dict else x
