"""The table of rules: torch function -> how it carries tangents.

A rule is called as ``rule(*args, **kwargs)`` with the function's own arguments, some of them Pairs, and returns the
result as a Pair. What a model's layers call ends here, so the rules serve every library's modules as they stand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

from taskarith_fast.ops._dual import add_tangents
from taskarith_fast.tangent import layer_rules
from taskarith_fast.tangent.pair import NoRuleError, Pair, directions, each, paired, pairs_in, tangent_of, value_of

Rule = Callable[..., Any]


def apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a torch function on Pairs.

    Raises:
        NoRuleError: If it has no rule, or the rule does not cover these arguments.
    """
    with torch._C.DisableTorchFunctionSubclass():
        if func in FACTS:
            return func(*value_of(args), **value_of(kwargs))
    if func in LINEAR:
        if not isinstance(args[0], Pair) or next(iter(pairs_in([args[1:], kwargs])), None) is not None:
            raise NoRuleError(f"{_name(func)} has a rule for a tangent in its first argument only")
        return each(LINEAR[func], args, kwargs)
    rule = RULES.get(func)
    if rule is None:
        raise NoRuleError(f"{_name(func)} has no rule for tangents")
    return rule(*args, **kwargs)


def _name(func: Any) -> str:
    return resolve_name(func) or str(func)


def _sum(a: Any, b: Any, *, alpha: Any = 1, sign: int = 1) -> Tensor:
    """a + sign * alpha * b."""
    factor = sign * alpha
    y = torch.add(value_of(a), value_of(b), alpha=factor)
    tangents = []
    for t in range(directions([a, b])):
        da, db = tangent_of(a, t), tangent_of(b, t)
        db = db if db is None or factor == 1 else db * factor
        dy = add_tangents(da, db)
        tangents.append(None if dy is None else dy.expand_as(y))
    return paired(y, tangents)


def _difference(a: Any, b: Any, *, alpha: Any = 1) -> Tensor:
    return _sum(a, b, alpha=alpha, sign=-1)


def _product(multiply: Callable[[Any, Any], Tensor]) -> Rule:
    """The rule of a function that is linear in each of its two arguments."""

    def rule(a: Any, b: Any) -> Tensor:
        va, vb = value_of(a), value_of(b)
        y = multiply(va, vb)
        tangents = []
        for t in range(directions([a, b])):
            da, db = tangent_of(a, t), tangent_of(b, t)
            left = None if da is None else multiply(da, vb)
            right = None if db is None else multiply(va, db)
            tangents.append(add_tangents(left, right))
        return paired(y, tangents)

    return rule


def _quotient(a: Any, b: Any) -> Tensor:
    va, vb = value_of(a), value_of(b)
    y = va / vb
    tangents = []
    for t in range(directions([a, b])):
        da, db = tangent_of(a, t), tangent_of(b, t)
        tangents.append(add_tangents(None if da is None else da / vb, None if db is None else -y * db / vb))
    return paired(y, tangents)


def _addcmul(a: Any, b: Any, c: Any, *, value: Any = 1) -> Tensor:
    """a + value * b * c; the sum is left to torch, so that its one rounding stays."""
    y = torch.addcmul(value_of(a), value_of(b), value_of(c), value=value)
    tangents = []
    for t in range(directions([a, b, c])):
        dy = tangent_of(a, t)
        for x, z in ((tangent_of(b, t), value_of(c)), (value_of(b), tangent_of(c, t))):
            if x is not None and z is not None:
                dy = value * x * z if dy is None else torch.addcmul(dy, x, z, value=value)
        tangents.append(None if dy is None else dy.expand_as(y))
    return paired(y, tangents)


def _joined(join: Callable[..., Tensor]) -> Rule:
    """The rule of cat and stack: plain tensors have tangents of zeros."""

    def rule(tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        y = join(value_of(list(tensors)), *args, **kwargs)
        tangents = []
        for t in range(directions([tensors])):
            parts = [tangent_of(x, t) for x in tensors]
            present = any(part is not None for part in parts)
            parts = [
                torch.zeros_like(value_of(x)) if part is None else part for x, part in zip(tensors, parts, strict=True)
            ]
            tangents.append(join(parts, *args, **kwargs) if present else None)
        return paired(y, tangents)

    return rule


def _unary(compute: Callable[[Tensor], Tensor], slope: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """The rule of an elementwise function with the derivative slope(x, y)."""

    def rule(x: Pair, inplace: bool = False) -> Tensor:
        if inplace:
            raise NoRuleError(f"{compute.__name__} in place has no rule for tangents")
        y = compute(x.value)
        factor = slope(x.value, y)
        return paired(y, [None if t is None else t * factor for t in x.tangents])

    return rule


def _relu(x: Pair, inplace: bool = False) -> Tensor:
    """The slope is read off the output, which the next layer keeps anyway."""
    if inplace:
        raise NoRuleError("relu in place has no rule for tangents")
    y = torch.relu(x.value)
    return paired(y, [None if t is None else torch.ops.aten.threshold_backward(t, y, 0) for t in x.tangents])


def _pow(x: Any, exponent: Any) -> Tensor:
    if not isinstance(x, Pair) or not isinstance(exponent, (int, float)):
        raise NoRuleError("pow has a rule for a number as exponent only")
    y = x.value**exponent
    slope = exponent * x.value ** (exponent - 1)
    return paired(y, [None if t is None else t * slope for t in x.tangents])


def _where(condition: Tensor, a: Any, b: Any) -> Tensor:
    """A choice by a plain condition; numbers and plain tensors have tangents of zeros."""
    y = torch.where(condition, value_of(a), value_of(b))
    tangents = []
    for t in range(directions([a, b])):
        da, db = tangent_of(a, t), tangent_of(b, t)
        present = da is not None or db is not None
        tangents.append(
            torch.where(condition, 0.0 if da is None else da, 0.0 if db is None else db) if present else None
        )
    return paired(y, tangents)


def _log_sum_exp(x: Pair, dim: Any, keepdim: bool = False) -> Tensor:
    y = torch.logsumexp(x.value, dim, keepdim)
    if all(t is None for t in x.tangents):
        return y
    p = torch.softmax(x.value, dim)
    return paired(y, [None if t is None else (p * t).sum(dim, keepdim) for t in x.tangents])


def _embedding(ids: Tensor, weight: Pair, *args: Any, **kwargs: Any) -> Tensor:
    look_up = functools.partial(F.embedding, ids)
    return each(look_up, (weight, *args), kwargs)


def _unchanged(x: Pair, p: float = 0.5, training: bool = True, inplace: bool = False) -> Pair:
    """Dropout that drops nothing."""
    if training and p > 0:
        raise NoRuleError("dropout that is active has no rule for tangents; a linearized model is deterministic")
    return x


_T = Tensor
# Answers about the value that carry no derivative.
FACTS: frozenset[Any] = frozenset(
    [getattr(_T, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "is_nested", "requires_grad",
     "is_cuda", "is_cpu", "is_sparse", "is_quantized", "is_meta", "is_mps", "is_xpu", "itemsize", "nbytes", "is_leaf")]
    + [_T.size, _T.dim, _T.numel, _T.nelement, _T.ndimension, _T.is_contiguous, _T.is_floating_point, _T.is_complex]
    + [_T.__len__, _T.__repr__, _T.element_size, torch.is_floating_point, torch.is_complex, torch.numel]
    + [_T.new_zeros, _T.new_ones, _T.new_empty, _T.new_full, _T.get_device]
    + [torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like, torch.randn_like]
)  # fmt: skip

# Linear in their first argument, as functions and as methods.
_BOTH = (
    "reshape", "flatten", "unflatten", "transpose", "swapaxes", "movedim", "permute", "unsqueeze", "squeeze", "unbind",
    "chunk", "split", "narrow", "select", "index_select", "gather", "roll", "flip", "tile", "sum", "mean", "neg",
    "clone",
)  # fmt: skip

# Functions that are linear in their first argument, and what to call for them. Tangents need not have the strides of
# their values, so a view of the one may be a copy of the other.
LINEAR: dict[Any, Callable[..., Any]] = {
    **{f: f for name in _BOTH for f in (getattr(torch, name), getattr(_T, name))},
    **{f: f for f in (_T.to, _T.float, _T.double, _T.half, _T.bfloat16, _T.type, _T.type_as, _T.contiguous, _T.expand,
                      _T.repeat, _T.repeat_interleave, _T.__getitem__, _T.__neg__)},
    _T.view: _T.reshape,
    _T.t: _T.t,
    _T.T.__get__: _T.t,  # type: ignore[attr-defined]
    _T.mT.__get__: lambda x: x.transpose(-1, -2),  # type: ignore[attr-defined]
    torch.t: torch.t,
    F.interpolate: F.interpolate,
    F.pad: F.pad,
}  # fmt: skip

_matmul = _product(torch.matmul)
_multiply = _product(torch.mul)
_sigmoid = _unary(torch.sigmoid, lambda x, y: y * (1 - y))
_tanh = _unary(torch.tanh, lambda x, y: 1 - y * y)
_exp = _unary(torch.exp, lambda x, y: y)
_silu = _unary(F.silu, lambda x, y: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))))
_rsqrt = _unary(torch.rsqrt, lambda x, y: -0.5 * y / x)
_sqrt = _unary(torch.sqrt, lambda x, y: 0.5 / y)

RULES: dict[Any, Rule] = {
    **dict.fromkeys((torch.add, _T.add, _T.__add__, _T.__radd__), _sum),
    **dict.fromkeys((torch.sub, _T.sub, _T.__sub__), _difference),
    _T.__rsub__: lambda b, a: _difference(a, b),
    **dict.fromkeys((torch.mul, _T.mul, _T.__mul__, _T.__rmul__), _multiply),
    **dict.fromkeys((torch.div, _T.div, _T.__truediv__), _quotient),
    _T.__rtruediv__: lambda b, a: _quotient(torch.as_tensor(a, dtype=b.dtype, device=b.device), b),
    **dict.fromkeys((torch.matmul, _T.matmul, _T.__matmul__, torch.mm, _T.mm), _matmul),
    **dict.fromkeys((torch.bmm, _T.bmm), _product(torch.bmm)),
    **dict.fromkeys((torch.addcmul, _T.addcmul), _addcmul),
    **dict.fromkeys((torch.cat, torch.concat), _joined(torch.cat)),
    torch.stack: _joined(torch.stack),
    **dict.fromkeys((torch.sigmoid, _T.sigmoid, F.sigmoid), _sigmoid),
    **dict.fromkeys((torch.tanh, _T.tanh, F.tanh), _tanh),
    **dict.fromkeys((torch.exp, _T.exp), _exp),
    **dict.fromkeys((torch.relu, _T.relu, F.relu), _relu),
    **dict.fromkeys((torch.rsqrt, _T.rsqrt), _rsqrt),
    **dict.fromkeys((torch.sqrt, _T.sqrt), _sqrt),
    F.silu: _silu,
    **dict.fromkeys((torch.pow, _T.pow, _T.__pow__), _pow),
    torch.where: _where,
    **dict.fromkeys((torch.logsumexp, _T.logsumexp), _log_sum_exp),
    F.embedding: _embedding,
    F.dropout: _unchanged,
    torch.dropout: lambda x, p, train: _unchanged(x, p, train),
    **layer_rules.RULES,
}
