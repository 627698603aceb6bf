import torch

from taskarith_fast.ops.weighted_sum import OP
from tests.ops.cases import OpCase, generator, task_lists

SHAPES = [(7, 13), (1,), (513,), (2, 3, 5)]


def _sample(shapes, tasks, seed=0):
    def make(dtype):
        base, finetuned = task_lists(shapes, tasks, dtype, seed)
        weights = torch.rand(tasks, len(base), dtype=torch.float64, generator=generator(seed)) * 2 - 0.5
        return base, finetuned, weights

    return make


def _strided(dtype):
    base, finetuned, weights = _sample([(6, 10)], 2)(dtype)
    return [b.t() for b in base], [f[:, :].t() for f in finetuned], weights.t().contiguous().t()


def _cancelling(dtype):
    """base + (finetuned - base) * w with a result near zero: float32 sums would keep no digit."""
    base = [torch.tensor([1.0, 3.0, -2.0], dtype=dtype)]
    return base, [base[0] * 2, base[0] * 3], torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def _truth(base, finetuned, weights):
    out = []
    for i, b in enumerate(base):
        deltas = torch.stack([f.double() - b.double() for f in finetuned[i :: len(base)]] or [b.double() * 0])
        w = weights[:, i] if len(weights) else torch.zeros(1, dtype=torch.float64)
        out.append(b.double() + torch.tensordot(w, deltas, dims=1))
    return out


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(SHAPES, 3),
        "eight tasks": _sample([(129, 33)], 8),
        "seventeen tasks": _sample([(67,), (3,)], 17),
        "one task": _sample(SHAPES, 1),
        "no task": _sample(SHAPES, 0),
        "empty tensors": _sample([(0,), (3, 0), (5,)], 2),
        "no dimension": _sample([()], 2),
        "more than a block": _sample([(20000,), (3,)], 5),
        "not contiguous": _strided,
        "cancelling": _cancelling,
    },
    truth=_truth,
    gradient=(0, 1, 2),
)
