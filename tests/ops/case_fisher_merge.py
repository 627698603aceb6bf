import torch

from taskarith_fast.ops.fisher_merge import OP
from tests.ops.cases import OpCase, generator, task_lists

SHAPES = [(7, 13), (1,), (513,), (2, 3, 5)]


def _sample(shapes, tasks, floor=0.0, add=False, half=False, dead=False):
    def make(dtype):
        _, finetuned = task_lists(shapes, tasks, dtype)
        g = generator(1)
        fishers = [torch.rand(f.shape, generator=g).pow(6) for f in finetuned]
        if dead:
            fishers = [f * (torch.arange(f.numel()).view(f.shape) % 3 > 0) for f in fishers]
        fishers = [f.to((torch.bfloat16, torch.float16)[i % 2]) if half else f for i, f in enumerate(fishers)]
        weights = torch.rand(tasks, dtype=torch.float64, generator=g) + 0.1
        factors = weights / torch.rand(tasks, dtype=torch.float64, generator=g)
        return finetuned, fishers, weights / weights.sum(), factors, floor, add

    return make


def _zero_weight(dtype):
    """The only task that needs anything has no weight: the mean of the others."""
    finetuned, fishers, _, _, floor, add = _sample([(40,)], 3)(dtype)
    fishers = [fishers[0], torch.zeros(40), torch.zeros(40)]
    weights = torch.tensor([0.0, 0.25, 0.75], dtype=torch.float64)
    return finetuned, fishers, weights, weights * 3, floor, add


def _strided(dtype):
    finetuned, fishers, *rest = _sample([(6, 10)], 2)(dtype)
    return [x.t() for x in finetuned], [f.t() for f in fishers], *rest


def _truth(finetuned, fishers, shares, factors, floor, add):
    tasks, out = len(shares), []
    length = len(finetuned) // tasks
    for i in range(length):
        theta = torch.stack([x.double() for x in finetuned[i::length]])
        fisher = torch.stack([f.double() for f in fishers[i::length]])
        by = (tasks, *(1,) * (theta.dim() - 1))
        known = (fisher * (shares > 0).view(by)).amax(0) > 0
        raised = (fisher + floor if add else torch.maximum(fisher, torch.tensor(floor).double())) * factors.view(by)
        out.append(torch.where(known, (raised * theta).sum(0) / raised.sum(0), (shares.view(by) * theta).sum(0)))
    return out


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(SHAPES, 3),
        "floor": _sample(SHAPES, 3, floor=0.01),
        "floor added": _sample(SHAPES, 2, floor=0.01, add=True),
        "half Fishers": _sample(SHAPES, 4, half=True),
        "nothing needed": _sample(SHAPES, 2, dead=True),
        "nothing needed, floor": _sample(SHAPES, 2, floor=1e-3, dead=True),
        "no weight on the need": _zero_weight,
        "eight tasks": _sample([(129, 33)], 8),
        "one task": _sample(SHAPES, 1),
        "empty tensors": _sample([(0,), (3, 0), (5,)], 2),
        "no dimension": _sample([()], 2),
        "more than a block": _sample([(20000,), (3,)], 5),
        "not contiguous": _strided,
    },
    truth=_truth,
)
