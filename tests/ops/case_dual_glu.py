import torch
from torch.func import jvp

from taskarith_fast.ops.dual_glu import FORMS, OP
from tests.ops.cases import OpCase, generator
from tests.ops.dual_budget import assert_within_term_budget


def _sample(shape, form, present="ab", spread=2.0):
    def make(dtype):
        g = generator(6)
        a, da, b, db = (torch.randn(shape, generator=g).to(dtype) for _ in range(4))
        return spread * a, da if "a" in present else None, b, db if "b" in present else None, form

    return make


def _strided(dtype):
    *tensors, form = _sample((6, 10), "gelu")(dtype)
    return *(t.t() for t in tensors), form


def _truth(a, da, b, db, form):
    primals = (a.double(), b.double())
    tangents = tuple(torch.zeros_like(x) if t is None else t.double() for x, t in zip(primals, (da, db), strict=True))
    return [jvp(lambda a, b: FORMS[form](a) * b, primals, tangents)[1]]


def _compare(args, out, eager, truth):
    a, da, b, db, _ = args
    terms = torch.zeros_like(a, dtype=torch.float64)
    if da is not None:
        terms = terms + (da.double() * b.double()).abs() * (1 + a.double().abs().clamp_max(4))
    if db is not None:
        terms = terms + (a.double() * db.double()).abs()
    assert_within_term_budget(out[0], eager[0], truth[0], terms)


CASE = OpCase(
    op=OP,
    samples={
        "relu": _sample((7, 13), "relu"),
        "silu": _sample((7, 13), "silu"),
        "erf": _sample((7, 13), "gelu"),
        "tanh": _sample((7, 13), "gelu_tanh"),
        "tanh far out": _sample((1001,), "gelu_tanh", spread=40.0),
        "silu far out": _sample((1001,), "silu", spread=40.0),
        "activated only": _sample((7, 13), "gelu_tanh", "a"),
        "gate only": _sample((7, 13), "gelu_tanh", "b"),
        "more than a block": _sample((3, 4099), "relu"),
        "blocks of several turns": _sample((3, 90_001), "silu"),
        "empty": _sample((0, 3), "gelu"),
        "no dimension": _sample((), "silu"),
        "not contiguous": _strided,
    },
    truth=_truth,
    compare=_compare,
    gradient=(1, 3),
)
