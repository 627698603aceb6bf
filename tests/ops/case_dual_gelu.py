import torch
import torch.nn.functional as F
from torch.func import jvp

from taskarith_fast.ops.dual_gelu import OP
from tests.ops.cases import OpCase, generator
from tests.ops.dual_budget import assert_within_term_budget


def _sample(shape, approximate, spread=2.0):
    def make(dtype):
        g = generator(1)
        return (
            (spread * torch.randn(shape, generator=g)).to(dtype),
            torch.randn(shape, generator=g).to(dtype),
            approximate,
        )

    return make


def _strided(dtype):
    x, dx, approximate = _sample((6, 10), "none")(dtype)
    return x.t(), dx.t(), approximate


def _truth(x, dx, approximate):
    def value(x):
        return x * torch.sigmoid(1.702 * x) if approximate == "quick" else F.gelu(x, approximate=approximate)

    return [jvp(value, (x.double(),), (dx.double(),))[1]]


def _compare(args, out, eager, truth):
    x, dx, _ = args
    assert_within_term_budget(out[0], eager[0], truth[0], dx.double().abs() * (1 + x.double().abs().clamp_max(4)))


CASE = OpCase(
    op=OP,
    samples={
        "erf": _sample((7, 13), "none"),
        "tanh": _sample((7, 13), "tanh"),
        "quick": _sample((7, 13), "quick"),
        "erf far out": _sample((1001,), "none", 40.0),
        "tanh far out": _sample((1001,), "tanh", 40.0),
        "quick far out": _sample((1001,), "quick", 40.0),
        "more than a block": _sample((3, 4099), "none"),
        "blocks of several turns": _sample((3, 90_001), "quick"),
        "tanh, more than a block": _sample((5000,), "tanh"),
        "empty": _sample((0, 3), "none"),
        "no dimension": _sample((), "none"),
        "not contiguous": _strided,
    },
    truth=_truth,
    compare=_compare,
    gradient=(1,),
)
