import torch

from taskarith_fast.ops.consensus import OP
from tests.ops.case_tall_mask import SHAPES, crossings, masks_by_the_book, on_the_boundary, sample, strided
from tests.ops.cases import OpCase, assert_within_budget


def _with(make, threshold=2, scale=1.0):
    return lambda dtype: (*make(dtype), threshold, scale)


def _truth(base, finetuned, lambdas, threshold, scale):
    out = []
    for b, (deltas, masks) in zip(base, masks_by_the_book(base, finetuned, lambdas), strict=True):
        agreed = torch.from_numpy(masks.sum(0) >= threshold).reshape(b.shape)
        out.append(b.double() + agreed * scale * torch.from_numpy(deltas.sum(0)).reshape(b.shape))
    return out


def _compare(args, out, eager, truth):
    """Off the boundary of every mask; on it, the same choice as the reference."""
    for o, e, t, near in zip(out, eager, truth, crossings(*args[:3]), strict=True):
        assert o.shape == t.shape
        sure = torch.from_numpy(~near.any(0)).reshape(o.shape)
        assert_within_budget([o[sure]], [e[sure]], [t[sure]])
        assert torch.allclose(o[~sure].double(), e[~sure].double(), rtol=torch.finfo(o.dtype).eps, atol=0)


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _with(sample(SHAPES, 3)),
        "scaled": _with(sample([(129, 33)], 9), threshold=3, scale=0.3),
        "every entry": _with(sample(SHAPES, 3), threshold=0, scale=0.3),
        "all tasks": _with(sample(SHAPES, 3), threshold=3),
        "more than there are": _with(sample(SHAPES, 3), threshold=4),
        "one task": _with(sample(SHAPES, 1), threshold=1),
        "no task": _with(sample(SHAPES, 0)),
        "empty tensors": _with(sample([(0,), (3, 0), (5,)], 2)),
        "no dimension": _with(sample([()], 2), threshold=1),
        "no delta": _with(sample([(70,)], 2, spread=0.0)),
        "more than a block": _with(sample([(17000,), (3,)], 3)),
        "on the boundary": _with(on_the_boundary, threshold=1),
        "not contiguous": _with(strided, threshold=1),
    },
    truth=_truth,
    compare=_compare,
)
