import torch

from taskarith_fast.ops import pack_bits, row_starts
from taskarith_fast.ops.masked_wgrad_ import OP
from tests.ops.cases import InPlace, OpCase, assert_within_roundings, generator


def _random(density):
    return lambda o, k, g: torch.rand(o, k, generator=g) < density


def _rows(density):
    return lambda o, k, g: (torch.rand(o, 1, generator=g) < density).expand(o, k)


def _columns(o, k, g):
    """Only a few columns, far apart: most panels hold nothing."""
    mask = torch.zeros(o, k, dtype=torch.bool)
    mask[:, [0, k // 2, k - 1]] = True
    return mask


def _one(o, k, g):
    mask = torch.zeros(o, k, dtype=torch.bool)
    mask[-1, -1] = True
    return mask


def _sample(rows, o, k, make_mask=None):
    make_mask = make_mask or _random(0.3)

    def make(dtype):
        g = generator()
        x, grad_y = (torch.randn(rows, n, generator=g).to(dtype) for n in (k, o))
        mask = make_mask(o, k, g)
        bits = pack_bits([mask])[0]
        return torch.randn(int(mask.sum()), generator=g), x, grad_y, bits, row_starts(bits, (o, k))

    return make


def _strided(dtype):
    values, x, grad_y, *mask = _sample(31, 37, 45)(dtype)
    return values, x.t().contiguous().t(), grad_y.t().contiguous().t(), *mask


def _selected(values, x, grad_y, bits, starts):
    product = grad_y.t() @ x
    flags = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: product.numel()]
    return product.flatten()[flags.bool()]


def _truth(values, x, grad_y, *mask):
    return [values.double() + _selected(values, x.double(), grad_y.double(), *mask)]


def _compare(args, out, eager, truth):
    values, x, grad_y, *mask = args
    magnitude = values.double().abs() + _selected(values, x.double().abs(), grad_y.double().abs(), *mask)
    assert_within_roundings(out[0], eager[0], truth[0], magnitude)


CASE = OpCase(
    op=InPlace(OP),
    samples={
        "odd sizes": _sample(31, 37, 45),
        "whole tiles": _sample(50, 96, 64),
        "more rows than are summed at once": _sample(600, 29, 67),
        "more than a chunk": _sample(2700, 401, 399, _random(0.1)),
        "few entries": _sample(300, 130, 150, _random(0.01)),
        "whole rows": _sample(50, 205, 70, _rows(0.2)),
        "few columns": _sample(50, 40, 200, _columns),
        "one entry": _sample(7, 33, 65, _one),
        "everything": _sample(50, 37, 45, _random(2)),
        "nothing": _sample(50, 37, 45, _random(-1)),
        "no input row": _sample(0, 7, 9),
        "one input row": _sample(1, 37, 45),
        "no weight": _sample(5, 0, 9),
        "strided": _strided,
    },
    truth=_truth,
    compare=_compare,
)
