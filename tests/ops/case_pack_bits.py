import numpy as np
import torch

from taskarith_fast.ops.pack_bits import OP
from tests.ops.cases import OpCase, generator


def random_masks(shapes, density=0.4):
    g = generator()
    return [torch.rand(s, generator=g) < density for s in shapes]


def _sample(shapes, density=0.4):
    return lambda dtype: (random_masks(shapes, density),)


def packed(masks):
    return [torch.from_numpy(np.packbits(m.numpy().ravel(), bitorder="little")) for m in masks]


def equal(args, out, eager, truth):
    for o, e, t in zip(out, eager, truth, strict=True):
        assert o.dtype == t.dtype and torch.equal(o, t) and torch.equal(e, t)


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample([(7, 13), (1,), (8,), (513,), (2, 3, 5)]),
        "empty": _sample([(0,), (3, 0)]),
        "no dimension": _sample([()]),
        "all": _sample([(77,)], 2.0),
        "none": _sample([(77,)], -1.0),
        "more than a block": _sample([(300001,), (3,)]),
        "not contiguous": lambda dtype: ([m.t() for m in random_masks([(6, 11)])],),
    },
    truth=packed,
    compare=equal,
    dtypes=(torch.float32,),
)
