import torch
import torch.nn.functional as F

from taskarith_fast.ops.dual_linear import OP
from tests.ops.cases import OpCase, generator
from tests.ops.dual_budget import assert_within_term_budget

_ALL = "dx bias dweight dbias"


def _sample(m, k, o, present=_ALL, with_value=True, spread=1.0):
    def make(dtype):
        g = generator(2)
        shapes = {"x": (m, k), "dx": (m, k), "weight": (o, k), "bias": (o,), "dweight": (o, k), "dbias": (o,)}
        tensors = {name: (spread * torch.randn(shape, generator=g)).to(dtype) for name, shape in shapes.items()}
        names = ["x", "weight", *present.split()]
        return *(tensor if name in names else None for name, tensor in tensors.items()), with_value

    return make


def _strided(dtype):
    *tensors, with_value = _sample(13, 21, 34)(dtype)
    return *(t.t().contiguous().t() if t.dim() == 2 else torch.stack([t, t], 1)[:, 0] for t in tensors), with_value


def _exact(x, dx, weight, bias, dweight, dbias, with_value):
    """y and dy in float64; the terms of their sums, for absolute arguments."""
    y = F.linear(x, weight, bias) if with_value else x.new_empty(0)
    parts = [F.linear(a, b) for a, b in ((dx, weight), (x, dweight)) if a is not None and b is not None]
    dy = sum(parts, x.new_zeros(len(x), len(weight)))
    return [y, dy if dbias is None else dy + dbias]


def _truth(*args):
    return _exact(*(t if not isinstance(t, torch.Tensor) else t.double() for t in args))


def _compare(args, out, eager, truth):
    terms = _exact(*(t if not isinstance(t, torch.Tensor) else t.double().abs() for t in args))
    for one in zip(out, eager, truth, terms, strict=True):
        assert_within_term_budget(*one)


CASE = OpCase(
    op=OP,
    samples={
        "small": _sample(3, 5, 4, spread=0.3),
        "odd sizes": _sample(13, 21, 34),
        "whole tiles": _sample(128, 64, 64),
        "more than a band of tiles": _sample(600, 19, 70),
        "long rows": _sample(5, 700, 9),
        "input only": _sample(13, 21, 34, "dx bias"),
        "weight only": _sample(13, 21, 34, "bias dweight"),
        "no bias": _sample(13, 21, 34, "dx dweight dbias"),
        "without the value": _sample(13, 21, 34, with_value=False),
        "input only, without the value": _sample(13, 21, 34, "dx", False),
        "weight only, without the value": _sample(13, 21, 34, "dweight dbias", False),
        "strided": _strided,
        "no row": _sample(0, 21, 34),
        "no column": _sample(5, 0, 7),
    },
    truth=_truth,
    compare=_compare,
    gradient=(1, 4, 5),
)
