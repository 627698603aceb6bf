import torch

from taskarith_fast.ops.ties_merge_part import OP
from tests.ops.case_ties_merge import CASE as WHOLE
from tests.ops.case_ties_merge import SHAPES, _few_values, _sample
from tests.ops.cases import OpCase, assert_within_budget


def _part(sample):
    """The arguments of ties_merge as those of a part: shares from the kept deltas, the sign of zero votes given."""

    def make(dtype):
        base, finetuned, thresholds, cutoffs, scale, elect, combine, zero_sign, scope = sample(dtype)
        tasks = thresholds.shape[1]
        args = (base, finetuned, thresholds, cutoffs, torch.zeros(tasks).double(), scope)
        sums = torch.ops.taskarith_reference.ties_square_sums.default(*args)
        shares = torch.where(sums > 0, 1 / sums, 0.0)
        return (*args[:4], shares, scale, elect, combine, {"plus": 1.0, "zero": 0.0}[zero_sign], scope)

    return make


def _truth(base, finetuned, thresholds, cutoffs, shares, scale, elect, combine, undecided, scope):
    zero_sign = "plus" if undecided else "zero"
    merged = WHOLE.truth(base, finetuned, thresholds, cutoffs, scale, elect, combine, zero_sign, scope)
    return [
        *merged,
        OP.reference(base, finetuned, thresholds, cutoffs, shares, scale, elect, combine, undecided, scope)[-1],
    ]


def _compare(args, out, eager, truth):
    assert_within_budget(out[:-1], eager[:-1], truth[:-1])
    assert torch.equal(out[-1], truth[-1])


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _part(_sample(SHAPES, 3, zero_sign="plus")),
        "nine tasks": _part(_sample(SHAPES, 9, combine="sum", zero_sign="zero")),
        "normfrac": _part(_sample(SHAPES, 5, elect="normfrac", zero_sign="plus")),
        "normmass": _part(_sample(SHAPES, 5, elect="normmass", zero_sign="plus")),
        "each row": _part(_sample([(33, 31), (7,), (5, 2, 3)], 3, scope="row", zero_sign="plus")),
        "few values, plus": _part(_few_values(zero_sign="plus", combine="sum")),
        "few values, zero": _part(_few_values(zero_sign="zero", combine="max")),
        "several blocks": _part(_sample([(30000,), (50001,)], 3, zero_sign="plus")),
    },
    truth=_truth,
    compare=_compare,
)
