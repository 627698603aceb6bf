"""Selections: every form gives back the mask's entries, in the size that the documentation promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops import Selection, selected_square_sums
from taskarith_fast.ops.selected_square_sums import OP
from taskarith_fast.ops.selection import BLOCK

SIZES = st.sampled_from([0, 1, 63, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])


def _mask(size, density, width, seed):
    """Random runs of `width` entries."""
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(size // width + 1, generator=g) < density).repeat_interleave(width)[:size]


@settings(max_examples=80, deadline=None)
@given(SIZES, st.sampled_from([0.0, 0.01, 0.3, 0.97, 1.1]), st.sampled_from([1, 5, 64, BLOCK]), st.integers(0, 9))
def test_a_selection_holds_the_entries_of_its_mask(size, density, width, seed):
    mask = _mask(size, density, width, seed)
    selection = Selection.of(mask)
    assert torch.equal(selection.index(), mask.nonzero()[:, 0])
    assert (selection.numel, selection.count) == (size, int(mask.sum()))
    blocks = -(-size // BLOCK)
    assert selection.nbytes <= 2 * selection.count + 16 * (blocks + 1)


def test_the_form_follows_the_mask():
    assert not Selection.of(torch.ones(9, dtype=torch.bool)).offsets.numel()
    rows = torch.rand(100, 1, generator=torch.Generator().manual_seed(0)) < 0.3
    assert Selection.of(rows.expand(100, 64)).items.dim() == 2
    assert Selection.of(torch.arange(100) % 3 == 0).items.dim() == 1
    with pytest.raises(ArgumentError, match="mask must be bool"):
        Selection.of(torch.ones(3))


@pytest.mark.skipif(OP.absent("cpu") is not None, reason="no cpu")
@pytest.mark.parametrize("harm", ["position", "run", "count", "order", "dtype"])
def test_a_selection_that_leaves_its_tensor_is_refused(harm):
    mask = _mask(BLOCK + 100, 0.5, 64 if harm == "run" else 1, 0)
    s = Selection.of(mask)
    items, offsets = s.items.clone(), s.offsets.clone()
    if harm == "position":
        items[-1] = 100
    elif harm == "run":
        items[-1, 1] = 100
    elif harm == "count":
        offsets[-1] += 1
    elif harm == "order":
        offsets[1] = offsets[2] + 1
    else:
        items = items.int()
    with pytest.raises(RuntimeError, match=r"selected_square_sums: "):
        OP([torch.zeros(s.numel)], [items], [offsets], [s.numel], backend="cpu")


def test_square_sums_see_nan_and_infinity_in_selected_entries_only():
    x = torch.ones(1000)
    x[3], x[7] = torch.nan, torch.inf
    mask = torch.ones(1000, dtype=torch.bool)
    mask[3] = mask[7] = False
    assert selected_square_sums([x], [Selection.of(mask)]).item() == 998
    mask[7] = True
    assert selected_square_sums([x], [Selection.of(mask)]).item() == torch.inf
    with pytest.raises(ArgumentError, match=r"tensors\[0\] must be float32, bfloat16 or float16 of 1000 or 999"):
        selected_square_sums([x[:5]], [Selection.of(mask)])
