import torch

from benchmarks.spectra import matrix
from taskarith_fast.ops.lowrank_sum import OP
from tests.ops.cases import OpCase, task_lists

SHAPES = [(67, 90), (100, 70), (1, 5), (9, 1), (30, 30)]


def _sample(shapes, tasks, ranks, svd="certified"):
    def make(dtype):
        return *task_lists(shapes, tasks, dtype), ranks, svd

    return make


def _wide(dtype):
    base = [torch.zeros(66, 600, dtype=dtype)]
    return base, [matrix("spiked", 66, 600, t).to(dtype) for t in range(3)], [6], "certified"


def _strided(dtype):
    base, finetuned, ranks, svd = _sample([(90, 70)], 2, [5])(dtype)
    return [b.t() for b in base], [f.t() for f in finetuned], ranks, svd


def _truth(base, finetuned, ranks, svd):
    out = []
    for i, b in enumerate(base):
        total = torch.zeros_like(b, dtype=torch.float64)
        for f in finetuned[i :: len(base)]:
            u, s, vh = torch.linalg.svd(f.double() - b.double(), full_matrices=False)
            total += (u[:, : ranks[i]] * s[: ranks[i]]) @ vh[: ranks[i]]
        out.append(total)
    return out


def _compare(args, out, eager, truth):
    """To one rounding of the type, and a part of the deltas' size: the subspaces of float32 vectors differ a
    little."""
    base, finetuned, *_ = args
    for i, (o, t) in enumerate(zip(out, truth, strict=True)):
        size = sum(float((f.double() - base[i].double()).norm()) for f in finetuned[i :: len(base)])
        error = float((o.double() - t).norm())
        assert error <= torch.finfo(o.dtype).eps * float(t.norm()) + 1e-4 * size, (
            f"output {i}: error {error}, size {size}"
        )


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(SHAPES, 3, [4, 5, 1, 1, 3]),
        "one task": _sample([(70, 130)], 1, [12]),
        "no task": _sample(SHAPES, 0, [1] * 5),
        "no matrix": lambda dtype: ([], [], [], "certified"),
        "full rank": _sample([(20, 30)], 2, [20]),
        "exact": _sample([(80, 90)], 2, [7], "exact"),
        "more than a group": _sample([(5, 6)] * 9, 9, [2] * 9),
        "several blocks of columns": _wide,
        "not contiguous": _strided,
    },
    truth=_truth,
    compare=_compare,
)
