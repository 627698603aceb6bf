import torch

from taskarith_fast.ops.kth_magnitude import magnitude_bits
from taskarith_fast.ops.tie_cutoffs import OP
from tests.ops.cases import OpCase, generator


def _sample(size, left, scale=1.0):
    """Deltas of few values: many ties."""

    def make(dtype):
        base = torch.zeros(size).to(dtype)
        draw = [torch.randint(-2, 3, (size,), generator=generator(i)).to(dtype) * scale for i in range(len(left))]
        values = [int(magnitude_bits(torch.tensor([scale]).to(dtype), torch.zeros(1).to(dtype)))] * len(left)
        return base, draw, values, list(left)

    return make


def _kept(args, cutoffs):
    base, finetuned, values, _ = args
    where = torch.arange(base.numel())
    return [(magnitude_bits(f, base) == v) & (where < c) for f, v, c in zip(finetuned, values, cutoffs, strict=True)]


def _truth(base, finetuned, values, left):
    """Which ties are kept, one after the other; as cutoffs, those of the reference."""
    out = OP.reference(base, finetuned, values, left)
    for f, v, n, c, rest in zip(finetuned, values, left, *out.tolist(), strict=True):
        ties = [i for i, bits in enumerate(magnitude_bits(f, base).tolist()) if bits == v]
        assert [i for i in ties if i < c] == ties[:n] and rest == max(n - len(ties), 0)
    return [out]


def _compare(args, out, eager, truth):
    assert torch.equal(out[0][1], truth[0][1])
    for a, b in zip(_kept(args, out[0][0]), _kept(args, truth[0][0]), strict=True):
        assert torch.equal(a, b)


CASE = OpCase(
    op=OP,
    samples={
        "some, all, none": _sample(4097, [13, 10**9, 0]),
        "one entry": _sample(1, [1]),
        "empty": _sample(0, [0, 5]),
        "several blocks": _sample(50_001, [1, 9_000, 19_000, 30_000], scale=0.5),
    },
    truth=_truth,
    compare=_compare,
)
