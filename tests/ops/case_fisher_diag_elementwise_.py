import torch

from taskarith_fast.ops.fisher_diag_elementwise_ import OP
from tests.ops.cases import InPlace, OpCase, assert_within_roundings, generator


def _sample(samples, tokens, d, multiplied=True):
    def make(dtype):
        g = generator()
        grad_y, x = (torch.randn(samples, tokens, d, generator=g).to(dtype) for _ in range(2))
        return torch.rand(d, generator=g), grad_y, x if multiplied else None, 0.25

    return make


def _mixed(dtype):
    fisher, grad_y, x, scale = _sample(3, 9, 40)(dtype)
    return fisher, grad_y, x.half(), scale


def _sequence_first(dtype):
    fisher, grad_y, x, scale = _sample(3, 5, 37)(dtype)
    return fisher, *(t.transpose(0, 1).contiguous().transpose(0, 1) for t in (grad_y, x)), scale


def _exact(fisher, grad_y, x, scale):
    terms = grad_y.double() if x is None else grad_y.double() * x.double()
    gradient, absolute = terms.sum(1), terms.abs().sum(1)
    total = fisher.double() + scale * gradient.square().sum(0)
    return total, fisher.double() + scale * (gradient.abs() * (2 * absolute + gradient.abs())).sum(0)


def _compare(args, out, eager, truth):
    assert_within_roundings(out[0], eager[0], truth[0], _exact(*args)[1])


CASE = OpCase(
    op=InPlace(OP),
    samples={
        "norm weight": _sample(3, 5, 37),
        "bias": _sample(3, 5, 37, multiplied=False),
        "more than a strip": _sample(4, 17, 1025),
        "position embedding": _sample(6, 1, 50 * 32, multiplied=False),
        "one sample": _sample(1, 197, 9),
        "norm weight of a transformer": _sample(3, 50, 192),
        "samples of several turns": _sample(70, 9, 520),
        "many samples": _sample(70, 3, 40),
        "two types": _mixed,
        "no sample": _sample(0, 5, 7),
        "no token": _sample(3, 0, 7),
        "no entry": _sample(3, 5, 0),
        "sequence first": _sequence_first,
    },
    truth=lambda *args: [_exact(*args)[0]],
    compare=_compare,
)
