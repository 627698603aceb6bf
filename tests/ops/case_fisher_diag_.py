import torch

from taskarith_fast.ops.fisher_diag_ import OP
from tests.ops.cases import InPlace, OpCase, assert_within_roundings, generator


def _sample(samples, tokens, o, k, scale=0.25):
    def make(dtype):
        g = generator()
        x, grad_y = (torch.randn(samples, tokens, n, generator=g).to(dtype) for n in (k, o))
        return torch.rand(o, k, generator=g), x, grad_y, scale

    return make


def _sequence_first(dtype):
    fisher, x, grad_y, scale = _sample(3, 5, 37, 45)(dtype)
    x, grad_y = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, grad_y))
    assert not x.is_contiguous()
    return fisher, x, grad_y, scale


def _mixed_types(dtype):
    fisher, x, grad_y, scale = _sample(3, 5, 37, 45)(dtype)
    return fisher, x.float(), grad_y, scale


def _exact(fisher, x, grad_y, scale):
    """The sum, and its magnitude: the square of a gradient g with roundings of m is wrong by 2 |g| m."""
    total, magnitude = fisher.double(), fisher.double()
    for inputs, cotangents in zip(x.double(), grad_y.double(), strict=True):
        gradient = cotangents.t() @ inputs
        total = total + scale * gradient.square()
        magnitude += abs(scale) * gradient.abs() * (2 * (cotangents.abs().t() @ inputs.abs()) + gradient.abs())
    return total, magnitude


def _compare(args, out, eager, truth):
    assert_within_roundings(out[0], eager[0], truth[0], _exact(*args)[1])


CASE = OpCase(
    op=InPlace(OP),
    samples={
        "odd sizes": _sample(3, 5, 37, 45),
        "whole tiles": _sample(2, 50, 96, 64),
        "more than a block of rows": _sample(2, 17, 205, 33),
        "one sample": _sample(1, 197, 13, 31),
        "one token": _sample(9, 1, 25, 70),
        "one entry": _sample(4, 3, 1, 1),
        "more than a chunk": _sample(14, 190, 401, 399),
        "a sample larger than a chunk": _sample(2, 9000, 130, 120),
        "no sample": _sample(0, 5, 7, 9),
        "no token": _sample(3, 0, 7, 9),
        "no row": _sample(3, 5, 0, 9),
        "no column": _sample(3, 5, 7, 0),
        "sequence first": _sequence_first,
        "mixed types": _mixed_types,
        "negative scale": _sample(3, 5, 37, 45, -0.5),
    },
    truth=lambda *args: [_exact(*args)[0]],
    compare=_compare,
)
