import torch

from taskarith_fast.ops.ties_square_sums import OP
from tests.ops.case_ties_merge import SHAPES, _few_values, _sample
from tests.ops.cases import OpCase
from tests.ops.ties_by_the_book import deltas


def _sums(sample):
    def make(dtype):
        base, finetuned, thresholds, cutoffs, *_, scope = sample(dtype)
        return base, finetuned, thresholds, cutoffs, torch.full((thresholds.shape[1],), 0.25).double(), scope

    return make


def _truth(base, finetuned, thresholds, cutoffs, start, scope):
    exact, magnitude = deltas(base, [finetuned[i : i + len(base)] for i in range(0, len(finetuned), len(base))])
    exact, magnitude = torch.as_tensor(exact), [torch.as_tensor(m) for m in magnitude]
    kept = torch.zeros_like(exact, dtype=torch.bool)
    for t in range(len(exact)):
        place = torch.arange(exact.shape[1])
        kept[t] = (magnitude[t] > thresholds[0, t]) | ((magnitude[t] == thresholds[0, t]) & (place < cutoffs[0, t]))
    return [start + (exact.square() * kept).sum(1)]


def _compare(args, out, eager, truth):
    torch.testing.assert_close(out, truth, rtol=1e-13, atol=0)  # float64 sums in another order


CASE = OpCase(
    op=OP,
    samples={
        "odd sizes": _sums(_sample(SHAPES, 3)),
        "one task": _sums(_sample(SHAPES, 1)),
        "few values": _sums(_few_values()),
        "several blocks": _sums(_sample([(30000,), (50001,)], 5)),
    },
    truth=_truth,
    compare=_compare,
)
