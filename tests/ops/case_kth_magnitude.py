import itertools

import numpy as np
import torch

from taskarith_fast.ops.kth_magnitude import OP
from tests.ops.cases import OpCase, generator, task_lists
from tests.ops.ties_by_the_book import deltas, kept_exactly, parts

SHAPES = [(33, 31), (7,), (1, 4097), (5, 2, 3), ()]


def _sample(shapes, tasks, k, scope="global"):
    def make(dtype):
        return *task_lists(shapes, tasks, dtype), k, scope

    return make


def _few_values(dtype):
    draw = [torch.randint(-2, 3, (3, 701), generator=generator(i)).to(dtype) for i in range(4)]
    return [draw[0]], draw[1:], [700], "global"


def _constant(dtype):
    return [torch.zeros(70000, dtype=dtype)], [torch.full((70000,), 0.5, dtype=dtype)], [12345], "global"


def _strided(dtype):
    base, finetuned = task_lists([(90, 70)], 2, dtype)
    return [b.t() for b in base], [f.t() for f in finetuned], [100], "global"


def _truth(base, finetuned, k, scope):
    length = len(base)
    tasks = [finetuned[i : i + length] for i in range(0, len(finetuned), length)] if length else []
    segments = parts([b.shape for b in base], scope)
    if scope == "tensor":
        starts = np.cumsum([0, *[b.numel() for b in base]])
        segments = [slice(a, b) for a, b in itertools.pairwise(starts)]
    counts = k * len(segments) if scope == "global" else k
    if scope == "row":
        counts = [c for b, c in zip(base, k, strict=True) for _ in range(b.numel() // b.shape[-1] if b.dim() else 1)]
    thresholds, cutoffs = (
        torch.full((len(segments), len(tasks)), torch.inf),
        torch.zeros(len(segments), len(tasks)),
    )
    for t, magnitude in enumerate(deltas(base, tasks)[1] if tasks else []):
        for s, (segment, count) in enumerate(zip(segments, counts, strict=True)):
            m = magnitude[segment]
            if count:
                mask = kept_exactly(m, count)
                thresholds[s, t] = float(m[mask].min())
                ties = m == m[mask].min()
                dropped = ties & ~mask
                cutoffs[s, t] = m.size if not dropped.any() else int((ties & mask).nonzero()[0][-1]) + 1
    return [thresholds.double(), cutoffs.double()]


def _compare(args, out, eager, truth):
    for o, e, t in zip(out, eager, truth, strict=True):
        assert torch.equal(o, e)
        assert torch.equal(o.double(), t)


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(SHAPES, 3, [1000]),
        "largest": _sample(SHAPES, 2, [1]),
        "smallest": _sample(SHAPES, 2, [5158]),
        "none": _sample(SHAPES, 2, [0]),
        "each tensor": _sample(SHAPES, 2, [200, 7, 1, 15, 1], "tensor"),
        "each row": _sample(SHAPES, 2, [3, 7, 4097, 1, 1], "row"),
        "one entry": _sample([()], 1, [1]),
        "no task": _sample(SHAPES, 0, [5]),
        "empty tensors": _sample([(0,), (9,), (3, 0)], 2, [4]),
        "empty tensors apart": _sample([(0,), (9,)], 2, [0, 4], "tensor"),
        "nothing at all": lambda dtype: ([], [], [0], "global"),
        "several blocks": _sample([(30000,), (50001,), (77, 999)], 3, [31000]),
        "several blocks, each tensor": _sample([(70001,), (9,), (300, 301)], 2, [9000, 2, 90300], "tensor"),
        "few values": _few_values,
        "one value": _constant,
        "not contiguous": _strided,
    },
    truth=_truth,
    compare=_compare,
)
