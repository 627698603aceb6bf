"""Histograms of magnitudes: what the common table does not say."""

import pytest
import torch

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops import count_magnitudes_
from taskarith_fast.ops.kth_magnitude import NAN_MAGNITUDE
from tests.ops.case_count_magnitudes_ import CASE
from tests.ops.cases import task_lists


def test_pieces_add_up_to_the_whole():
    counts, base, models, *brackets = CASE.samples["several blocks"](torch.bfloat16)
    expected = count_magnitudes_(counts.clone(), base, models, *brackets)
    for piece in range(0, base.numel(), 500):
        cut = slice(piece, piece + 500)
        count_magnitudes_(counts, base[cut], [m[cut] for m in models], *brackets)
    assert torch.equal(counts, expected)


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
