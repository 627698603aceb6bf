"""What bottom_k_mask promises beyond the contract: exact counts, nested choices, and errors that name the argument."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops import bottom_k_mask, pack_bits, unpack_bits


def _chosen(scores, k, **options):
    bits = bottom_k_mask(scores, k, **options)
    return torch.cat([m.reshape(-1) for m in unpack_bits(bits, [s.shape for s in scores])])


def test_of_equal_scores_the_first_in_tensor_order_is_chosen():
    scores = [torch.tensor([1.0, 0.0]), torch.tensor([-0.0, 0.0, 2.0])]
    assert _chosen(scores, 2).tolist() == [False, True, True, False, False]
    assert _chosen(scores, 2, largest=True).tolist() == [True, False, False, False, True]


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf")]), min_size=1, max_size=40), st.data())
@settings(max_examples=50, deadline=None)
def test_exactly_k_are_chosen_and_fewer_are_a_part_of_more(values, data):
    scores = [torch.tensor(values)]
    k = data.draw(st.integers(0, len(values)))
    less, more = _chosen(scores, k // 2), _chosen(scores, k)
    assert int(more.sum()) == k and not (less & ~more).any()


def test_an_excluded_entry_is_never_chosen_even_if_it_is_the_lowest():
    scores, out = [torch.arange(100.0)], torch.arange(100) < 10
    chosen = _chosen(scores, 5, excluded=pack_bits([out]))
    assert chosen.nonzero().reshape(-1).tolist() == [10, 11, 12, 13, 14]


def test_bits_after_the_last_entry_do_not_count_as_excluded():
    assert _chosen([torch.arange(3.0)], 3, excluded=[torch.tensor([0b11111000], dtype=torch.uint8)]).all()


def test_mistakes_are_named():
    scores = [torch.zeros(4), torch.tensor([0.0, torch.nan, torch.inf])]
    with pytest.raises(ArgumentError, match=r"scores\[1\] must hold no NaN, got 1"):
        bottom_k_mask(scores, 1)
    with pytest.raises(ArgumentError, match=r"scores\[0\] must be float32, got torch.float64"):
        bottom_k_mask([torch.zeros(3).double()], 1)
    with pytest.raises(ArgumentError, match=r"k must be in \[0, 2\], .* got 3"):
        bottom_k_mask([torch.zeros(4)], 3, excluded=pack_bits([torch.tensor([True, False, True, False])]))
    with pytest.raises(ArgumentError, match=r"bits\[0\] must be uint8 \[1\] for 4 entries"):
        bottom_k_mask([torch.zeros(4)], 3, excluded=[torch.zeros(2, dtype=torch.uint8)])
