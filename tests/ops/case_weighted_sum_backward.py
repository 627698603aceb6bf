import torch

from taskarith_fast.ops.weighted_sum_backward import OP
from tests.ops.cases import OpCase, generator, task_lists

SHAPES = [(7, 13), (1,), (513,), (2, 3, 5)]


def _sample(shapes, tasks, spread=1e-2):
    def make(dtype):
        base, finetuned = task_lists(shapes, tasks, dtype, spread=spread)
        g = generator(1)
        return [torch.randn(s, generator=g).to(dtype) for s in shapes], base, finetuned

    return make


def _strided(dtype):
    grads, base, finetuned = _sample([(6, 10)], 2)(dtype)
    return [grads[0][:1, :1].expand(10, 6)], [base[0].t()], [f.t() for f in finetuned]


def _truth(grads, base, finetuned):
    tasks = len(finetuned) // len(base)
    out = [
        torch.dot((finetuned[t * len(base) + i].double() - b.double()).flatten(), grads[i].double().flatten())
        for t in range(tasks)
        for i, b in enumerate(base)
    ]
    return [torch.stack(out).reshape(tasks, len(base)) if out else torch.zeros(0, len(base), dtype=torch.float64)]


def _compare(args, out, eager, truth):
    """Sums in float64: a rounding for each addition of the magnitudes, at worst."""
    grads, base, finetuned = args
    magnitudes = _truth(
        [g.abs() for g in grads],
        [torch.zeros_like(b) for b in base],
        [(f.double() - base[j % len(base)].double()).abs() for j, f in enumerate(finetuned)],
    )[0]
    longest = max(b.numel() for b in base)
    assert out[0].shape == truth[0].shape and not torch.isnan(out[0]).any()
    assert ((out[0] - truth[0]).abs() <= longest * 2**-53 * magnitudes).all()


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(SHAPES, 3),
        "seventeen tasks": _sample([(67,), (3,)], 17),
        "one task": _sample(SHAPES, 1),
        "no task": _sample(SHAPES, 0),
        "nine tasks": _sample([(129, 33)], 9),
        "empty tensors": _sample([(0,), (3, 0), (5,)], 2),
        "no dimension": _sample([()], 2),
        "more than a block": _sample([(40000,), (3,), (16384,)], 2),
        "no delta": _sample([(70,)], 2, spread=0.0),
        "expanded gradient": _strided,
    },
    truth=_truth,
    compare=_compare,
)
