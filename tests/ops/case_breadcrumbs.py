import torch

from taskarith_fast.ops.breadcrumbs import OP
from tests.ops.cases import OpCase, generator, task_lists

SHAPES = [(7, 13), (1,), (513,), (2, 3, 5)]


def _counts(base, outliers, density):
    sizes = [b.shape[-1] if b.dim() else 1 for b in base]
    removed = [int(n * outliers) for n in sizes]
    return removed, [min(int(n * density), n - r) for n, r in zip(sizes, removed, strict=True)]


def _sample(shapes, tasks, outliers=0.1, density=0.2, change=lambda f, b: f):
    def make(dtype):
        base, finetuned = task_lists(shapes, tasks, dtype)
        finetuned = [change(f, base[j % len(base)]) for j, f in enumerate(finetuned)]
        weights = torch.rand(tasks, len(base), dtype=torch.float64, generator=generator(2))
        return base, finetuned, weights, *_counts(base, outliers, density)

    return make


def _strided(dtype):
    base, finetuned, weights, _, _ = _sample([(20, 30)], 2)(dtype)
    base = [b.t() for b in base]
    return base, [f.t() for f in finetuned], weights, *_counts(base, 0.1, 0.2)


def _tied(f, b):
    """Few distinct magnitudes, signs mixed, on a zero base so that they are exact."""
    b.zero_()
    return ((f * 100).round() % 3).to(f.dtype)


def _unlike_rows(f, b):
    """Magnitudes that change by powers of ten from row to row, so that no row tells about the next."""
    b.zero_()
    return f * 10.0 ** (torch.arange(f.shape[0])[:, None] * 7 % 5 - 2).to(f.dtype)


def ranked(magnitudes, removed, kept):
    """Positions to keep in one row, by Python's sort: larger first, then lower position."""
    order = sorted(range(len(magnitudes)), key=lambda j: (-magnitudes[j], j))
    return order[removed : removed + kept]


def _truth(base, finetuned, weights, removed, kept):
    out = []
    for i, b in enumerate(base):
        n = b.shape[-1] if b.dim() else 1
        total = b.double().contiguous().reshape(-1, max(n, 1)).clone()
        for t in range(len(weights)):
            f = finetuned[t * len(base) + i]
            exact = (f.double() - b.double()).contiguous().reshape(total.shape)
            magnitudes = (f.float() - b.float()).abs().contiguous().reshape(total.shape).tolist()
            for row, values in enumerate(magnitudes):
                for j in ranked(values, removed[i], kept[i]):
                    total[row, j] += weights[t, i] * exact[row, j]
        out.append(total.reshape(b.shape))
    return out


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(SHAPES, 3),
        "wide rows": _sample([(5, 768), (2, 3072)], 2),
        "nine tasks": _sample([(40, 50)], 9),
        "narrow rows": _sample([(50, 32), (33, 3), (10, 65)], 2),
        "one task": _sample(SHAPES, 1),
        "no task": _sample(SHAPES, 0),
        "empty tensors": _sample([(0,), (3, 0), (5,)], 2),
        "no dimension": lambda dtype: (*_sample([()], 2)(dtype)[:3], [0], [1]),
        "keep all": _sample(SHAPES, 2, outliers=0.0, density=1.0),
        "remove all": lambda dtype: (*_sample([(9,)], 2)(dtype)[:3], [9], [0]),
        "keep the rest": _sample(SHAPES, 2, outliers=0.5, density=0.9),
        "ties": _sample([(20, 97), (3, 768)], 2, change=_tied),
        "no delta": _sample([(20, 97)], 2, change=lambda f, b: b.clone()),
        "unlike rows": _sample([(20, 97)], 2, change=_unlike_rows),
        "a long row": _sample([(70001,)], 1),
        "not contiguous": _strided,
    },
    truth=_truth,
)
