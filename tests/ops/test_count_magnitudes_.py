"""Histograms of magnitudes: equal to sorting, whatever the pieces."""

import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops import count_magnitudes_
from taskarith_fast.ops.count_magnitudes_ import OP
from taskarith_fast.ops.kth_magnitude import NAN_MAGNITUDE, magnitude_bits
from tests.ops.cases import DTYPES, task_lists


def _counted(base, models, low, high, shift, bins):
    counts = torch.zeros(len(models), bins + 1, dtype=torch.int64)
    for t, model in enumerate(models):
        for bits in magnitude_bits(model, base).tolist():
            if bits > high[t]:
                counts[t, -1] += 1
            elif bits >= low[t]:
                counts[t, (bits - low[t]) >> shift[t]] += 1
    return counts


def _bracket(base, model, inner):
    bits = magnitude_bits(model, base).sort().values
    return [int(bits[int(q * (bits.numel() - 1))]) for q in inner]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "kind"), [(1, torch.int64), (63, torch.int32), (2049, torch.int32), (16387, torch.int64)]
)
def test_counts_equal_those_of_a_loop(backend, dtype, size, kind):
    (base,), models = task_lists([(size,)], 3, dtype)
    models[1] = base.clone()  # all zero: one value holds everything
    models[2][::7] = torch.nan
    ends = [_bracket(base, m, q) for m, q in zip(models, [(0.4, 0.6), (0, 1), (0.1, 1)], strict=True)]
    low, high = [e[0] for e in ends], [e[1] for e in ends]
    shift = [max((h - lo).bit_length() - 9, 0) for lo, h in zip(low, high, strict=True)]
    expected = _counted(base, models, low, high, shift, 513)
    counts = torch.zeros(3, 514, dtype=kind)
    for piece in range(0, size, 500):
        cut = slice(piece, piece + 500)
        count_magnitudes_(counts, base[cut], [m[cut] for m in models], low, high, shift, backend=backend)
    assert torch.equal(counts.long(), expected)


def test_counts_do_not_depend_on_the_number_of_threads():
    (base,), models = task_lists([(100_003,)], 2, torch.float32)
    threads, seen = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            counts = torch.zeros(2, 2049, dtype=torch.int64)
            seen.append(count_magnitudes_(counts, base, models, [0, 0], [NAN_MAGNITUDE] * 2, [20, 20]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert seen[0].sum(1).tolist() == [100_003, 100_003]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck_passes(backend):
    (base,), models = task_lists([(99,)], 2, torch.float32)
    args = (torch.zeros(2, 9, dtype=torch.int64), base, models, [0, 5], [NAN_MAGNITUDE] * 2, [28, 28])
    if OP.absent(backend):
        pytest.skip(OP.absent(backend))
    torch.library.opcheck(OP.overload(backend), args)


def test_a_bracket_out_of_its_domain_is_refused():
    (base,), models = task_lists([(9,)], 1, torch.float32)
    counts = torch.zeros(1, 9, dtype=torch.int64)
    for low, high, shift in (([5], [4], [0]), ([0], [NAN_MAGNITUDE], [3]), ([-1], [4], [0])):
        with pytest.raises(ArgumentError, match="bracket 0 must lie in"):
            count_magnitudes_(counts, base, models, low, high, shift)
    with pytest.raises(ArgumentError, match="counts must be int64"):
        count_magnitudes_(counts.float(), base, models, [0], [1], [0])
    with pytest.raises(ArgumentError, match="low, high and shift"):
        count_magnitudes_(counts, base, models, [0], [1, 2], [0])
