import torch

from taskarith_fast.ops.count_nonfinite import OP
from tests.ops.cases import OpCase, task_lists


def _sample(shapes, every):
    def make(dtype):
        tensors, _ = task_lists(shapes, 0, dtype)
        for x in tensors:
            if every and x.dim():
                x.view(-1)[::every] = torch.nan
                x.view(-1)[1::every] = -torch.inf
        return (tensors,)

    return make


def _compare(args, out, eager, truth):
    assert torch.equal(out[0], truth[0])


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample([(33, 31), (7,), (1, 4097), (5, 2, 3), ()], 5),
        "finite": _sample([(100_003,), (0,)], 0),
        "no tensor": _sample([], 0),
        "all of them": _sample([(140_001,), (2,)], 2),
    },
    truth=lambda tensors: [torch.tensor([int((~torch.isfinite(x)).sum()) for x in tensors], dtype=torch.int64)],
    compare=_compare,
)
