import torch

from taskarith_fast.ops.count_magnitudes_ import OP
from taskarith_fast.ops.kth_magnitude import NAN_MAGNITUDE, magnitude_bits
from tests.ops.cases import InPlace, OpCase, task_lists

BINS = 513


def _sample(size, kind=torch.int64, inner=((0.4, 0.6), (0, 1), (0.1, 1))):
    """Of three tasks one has ordinary deltas, one equals the base, one has NaN; brackets by quantiles."""

    def make(dtype):
        (base,), models = task_lists([(size,)], 3, dtype)
        models[1] = base.clone()
        models[2][::7] = torch.nan
        ordered = [magnitude_bits(model, base).sort().values for model in models]
        ends = [
            [int(bits[int(q * (size - 1))]) if size else 0 for q in pair]
            for bits, pair in zip(ordered, inner, strict=True)
        ]
        shift = [max((high - low).bit_length() - 9, 0) for low, high in ends]
        counts = torch.arange(3 * (BINS + 1), dtype=kind).reshape(3, -1)
        return counts, base, models, [e[0] for e in ends], [e[1] for e in ends], shift

    return make


def _everything(dtype):
    (base,), models = task_lists([(4097,)], 2, dtype)
    return torch.zeros(2, 2049, dtype=torch.int64), base, models, [0, 0], [NAN_MAGNITUDE] * 2, [20, 20]


def _truth(counts, base, models, low, high, shift):
    out = counts.clone()
    for t, model in enumerate(models):
        for bits in magnitude_bits(model, base).tolist():
            if bits > high[t]:
                out[t, -1] += 1
            elif bits >= low[t]:
                out[t, (bits - low[t]) >> shift[t]] += 1
    return [out]


def _equal(args, out, eager, truth):
    assert torch.equal(out[0], truth[0]) and torch.equal(eager[0], truth[0])


CASE = OpCase(
    op=InPlace(OP),
    samples={
        "odd sizes": _sample(2049),
        "32 bits": _sample(63, torch.int32),
        "one entry": _sample(1, torch.int32),
        "several blocks": _sample(16_387),
        "one value": _sample(999, inner=((0.5, 0.5), (0, 0), (1, 1))),
        "everything": _everything,
        "empty": _sample(0),
    },
    truth=_truth,
    compare=_equal,
)
