import torch
import torch.nn.functional as F
from torch.func import jvp

from taskarith_fast.ops.dual_layer_norm import OP
from tests.ops.cases import OpCase, generator
from tests.ops.dual_budget import assert_within_term_budget

ALL = ("dx", "weight", "dweight", "dbias")


def _sample(shape, present=ALL, centered=True, shift=0.5):
    def make(dtype):
        g = generator(2)

        def draw(name, size):
            values = torch.randn(size, generator=g).to(dtype)
            return values if name in present else None

        x = (torch.randn(shape, generator=g) + shift).to(dtype)
        dx = draw("dx", shape)
        return x, dx, *(draw(name, shape[-1:]) for name in ALL[1:]), 1e-5, centered

    return make


def _strided(dtype):
    x, dx, *rest = _sample((6, 10, 8))(dtype)
    return x.transpose(0, 1), dx.transpose(0, 1), *rest


def _truth(x, dx, weight, dweight, dbias, eps, centered):
    x = x.double()
    weight = x.new_ones(x.shape[-1:]) if weight is None else weight.double()
    tangents = [torch.zeros_like(x) if dx is None else dx.double()]
    tangents += [torch.zeros_like(weight) if t is None else t.double() for t in (dweight, dbias)]

    def value(x, weight, bias):
        if centered:
            return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        return F.rms_norm(x, x.shape[-1:], weight, eps) + bias

    return [jvp(value, (x, weight, torch.zeros_like(weight)), tuple(tangents))[1]]


def _compare(args, out, eager, truth):
    x, dx, weight, dweight, dbias, eps, centered = args
    x = x.double()
    centre = x - x.mean(-1, keepdim=True) if centered else x
    rstd = torch.rsqrt(centre.square().mean(-1, keepdim=True) + eps)
    terms = torch.zeros_like(x)
    if dx is not None:
        size = dx.double().abs()
        mean = size.mean(-1, keepdim=True)
        slope = rstd * (1.0 if weight is None else weight.double().abs())
        terms = slope * (size + mean + x.abs() * rstd * (x.abs() * rstd * size).mean(-1, keepdim=True))
    for t, factor in ((dweight, x.abs() * rstd), (dbias, 1.0)):
        terms = terms if t is None else terms + t.double().abs() * factor
    assert_within_term_budget(out[0], eager[0], truth[0], terms)


CASE = OpCase(
    op=OP,
    samples={
        "all tangents": _sample((3, 5, 17)),
        "input only": _sample((4, 33), ("dx",)),
        "input and weight": _sample((4, 33), ("dx", "weight")),
        "parameters only": _sample((4, 33), ("weight", "dweight", "dbias")),
        "bias only": _sample((4, 33), ("dbias",)),
        "root mean square": _sample((4, 33), ("dx", "weight", "dweight"), centered=False),
        "root mean square alone": _sample((4, 33), ("dx",), centered=False),
        "no bias": _sample((4, 33), ("dx", "weight", "dweight")),
        "far from zero": _sample((4, 129), shift=30.0),
        "many rows": _sample((37, 24)),
        "rows of several turns": _sample((300, 12)),
        "width 384": _sample((5, 384)),
        "width 768": _sample((5, 768)),
        "width 1000, RMSNorm": _sample((5, 1000), centered=False),
        "width 1280": _sample((3, 1280)),
        "width 1664": _sample((3, 1664), ("dx", "weight")),
        "width 2048": _sample((3, 2048)),
        "width 2049, rows of several turns": _sample((66, 2049), ("dx", "weight")),
        "width one": _sample((3, 1)),
        "empty": _sample((0, 8)),
        "not contiguous": _strided,
    },
    truth=_truth,
    compare=_compare,
    gradient=(1, 3, 4),
)
