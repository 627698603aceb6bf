import torch

from taskarith_fast.ops.where_bits import OP
from tests.ops.case_pack_bits import packed, random_masks
from tests.ops.cases import OpCase, task_lists


def _sample(shapes, density=0.4):
    def make(dtype):
        off, on = task_lists(shapes, 1, dtype)
        return packed(random_masks(shapes, density)), on, off

    return make


def _strided(dtype):
    off, on = task_lists([(6, 11)], 1, dtype)
    return packed(random_masks([(11, 6)])), [on[0].t()], [off[0].t()]


def _truth(bits, on, off):
    out = []
    for b, x, y in zip(bits, on, off, strict=True):
        flat = [
            (p if int(b[j // 8]) >> (j % 8) & 1 else q)
            for j, (p, q) in enumerate(zip(x.double().flatten(), y.double().flatten(), strict=True))
        ]
        out.append(torch.tensor(flat, dtype=torch.float64).reshape(y.shape))
    return out


def _compare(args, out, eager, truth):
    for o, e, t in zip(out, eager, truth, strict=True):
        assert torch.equal(o, e) and torch.equal(o.double(), t)


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample([(7, 13), (1,), (8,), (513,), (2, 3, 5)]),
        "empty": _sample([(0,), (3, 0)]),
        "no dimension": _sample([()], 2.0),
        "none": _sample([(77,)], -1.0),
        "more than a block": _sample([(17003,), (3,)]),
        "not contiguous": _strided,
    },
    truth=_truth,
    compare=_compare,
)
