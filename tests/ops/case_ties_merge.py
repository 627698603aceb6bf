import torch

from taskarith_fast.ops.kth_magnitude import kth_magnitude_reference
from taskarith_fast.ops.ties_merge import OP
from tests.ops.cases import OpCase, generator, task_lists
from tests.ops.ties_by_the_book import deltas, kept_exactly, merged, parts

SHAPES = [(33, 31), (7,), (1, 4097), (5, 2, 3), ()]


def _rules(elect="mass", combine="mean", zero_sign="global_majority", scope="global", scale=0.7):
    return scale, elect, combine, zero_sign, scope


def _with_thresholds(base, finetuned, rules):
    scope = rules[-1]
    k = [int(0.3 * b.numel()) for b in base]
    if scope == "row":
        k = [b.shape[-1] // 3 if b.dim() else 1 for b in base]
    return (
        base,
        finetuned,
        *kth_magnitude_reference(base, finetuned, [sum(k)] if scope == "global" else k, scope),
        *rules,
    )


def _sample(shapes, tasks, **rules):
    return lambda dtype: _with_thresholds(*task_lists(shapes, tasks, dtype), _rules(**rules))


def _few_values(**rules):
    def make(dtype):
        draw = [torch.randint(-2, 3, s, generator=generator(i)).to(dtype) for i in range(5) for s in SHAPES]
        return _with_thresholds(draw[: len(SHAPES)], draw[len(SHAPES) :], _rules(**rules))

    return make


def _strided(dtype):
    base, finetuned = task_lists([(60, 70)], 3, dtype)
    return _with_thresholds([b.t() for b in base], [f.t() for f in finetuned], _rules())


def _truth(base, finetuned, thresholds, cutoffs, scale, elect, combine, zero_sign, scope):
    tasks = [finetuned[i : i + len(base)] for i in range(0, len(finetuned), max(len(base), 1))]
    if not tasks:
        return [b.double() for b in base]
    exact, magnitude = deltas(base, tasks)
    for t, m in enumerate(magnitude):
        for part in parts([b.shape for b in base], scope):
            k = int(0.3 * m[part].size)
            if scope == "global":
                k = sum(int(0.3 * b.numel()) for b in base)
            elif scope == "row":
                k = m[part].size // 3 if m[part].size > 1 else 1
            exact[t, part] *= kept_exactly(m[part], k)
    flat = torch.from_numpy(scale * merged(exact, elect, combine, zero_sign))
    pieces = flat.split([b.numel() for b in base])
    return [b.double() + p.reshape(b.shape) for b, p in zip(base, pieces, strict=True)]


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sample(SHAPES, 3),
        "one task": _sample(SHAPES, 1),
        "four tasks": _sample(SHAPES, 4, combine="max"),
        "nine tasks": _sample(SHAPES, 9, combine="sum"),
        "no task": lambda dtype: (
            *task_lists(SHAPES, 0, dtype),
            torch.ones(1, 0),
            torch.ones(1, 0).long(),
            *_rules(),
        ),
        "count": _sample(SHAPES, 5, elect="count"),
        "normfrac": _sample(SHAPES, 5, elect="normfrac"),
        "normmass": _sample(SHAPES, 5, elect="normmass"),
        "largest of a count": _sample(SHAPES, 5, elect="count", combine="max"),
        "largest of a normfrac": _sample(SHAPES, 5, elect="normfrac", combine="max"),
        "largest of a normmass": _sample(SHAPES, 5, elect="normmass", combine="max"),
        "each tensor": _sample(SHAPES, 3, scope="tensor"),
        "each row": _sample([(33, 31), (7,), (5, 2, 3)], 3, scope="row"),
        "empty tensors": _sample([(0,), (9,), (3, 0)], 2),
        "few values": _few_values(),
        "few values, plus": _few_values(zero_sign="plus", combine="sum"),
        "few values, zero": _few_values(zero_sign="zero", combine="max"),
        "few values, count": _few_values(elect="count", scope="tensor"),
        "several blocks": _sample([(30000,), (50001,)], 3),
        "not contiguous": _strided,
    },
    truth=_truth,
)
