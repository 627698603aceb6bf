"""Models along CART's rank, against cart, cart_routing and the formula."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.arithmetic import average, task_arithmetic
from taskarith_fast.merging.cart import cart
from taskarith_fast.merging.cart_spectrum import CartSpectrum
from tests.merging.test_cart import MATRICES, _models, _truncate


def _close(ours, theirs):
    assert list(ours) == list(theirs) and len(ours) == len(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("split_qkv", [False, True])
@pytest.mark.parametrize("order", ["largest", "smallest"])
def test_merged_states_are_those_of_cart(order, split_qkv):
    base, models = _models()
    spectrum = CartSpectrum(base, models, split_qkv=split_qkv)
    for rank_ratio in (0.05, 0.3, 1.0):
        expected = cart(base, models, rank_ratio=rank_ratio, scale=1.3, order=order, split_qkv=split_qkv)
        _close(spectrum.state(rank_ratio=rank_ratio, scale=1.3, order=order), expected)


@pytest.mark.parametrize("origin", ["average", "base"])
def test_routed_states_are_those_of_cart_routing(origin):
    base, models = _models()
    spectrum = CartSpectrum(base, models, origin=origin, max_rank_ratio=0.3)
    expected = ta.merge_per_task(base, models, "cart_routing", rank_ratio=0.3, scale=0.8, origin=origin)
    for t, state in enumerate(expected):
        _close(spectrum.state(rank_ratio=0.3, scale=0.8, task=t), state)


def test_around_the_base_task_vectors_are_cut_to_the_rank():
    base, models = _models()
    spectrum = CartSpectrum(base, models, origin="base")
    state = spectrum.state(rank_ratio=0.25, scale=0.4)
    plain = task_arithmetic(base, models, scale=0.4)
    for name in base:
        if name in MATRICES:
            start, rank = base[name].double(), max(1, int(0.25 * min(base[name].shape)))
            total = sum(_truncate(m[name].double() - start, rank) for m in models)
            torch.testing.assert_close(state[name], (start + 0.4 * total).float(), rtol=0, atol=3e-6)
        else:
            torch.testing.assert_close(state[name], plain[name])
    _close(spectrum.state(rank_ratio=1.0, scale=0.4), plain)


@pytest.mark.parametrize("task", [None, 1])
@pytest.mark.parametrize("origin", ["average", "base"])
def test_both_orders_together_are_the_whole_and_rank_zero_is_the_origin(origin, task):
    base, models = _models()
    spectrum = CartSpectrum(base, models, origin=origin)
    none, whole = (spectrum.state(rank_ratio=r, task=task) for r in (0.0, 1.0))
    start = average(base, models) if origin == "average" else base
    _close(none, start)
    for name in MATRICES:
        full = min(base[name].shape)
        low = spectrum.state(rank_ratio=(full // 3) / full, order="smallest", task=task)[name]
        high = spectrum.state(rank_ratio=(full - full // 3) / full, task=task)[name]
        torch.testing.assert_close(low + high, none[name] + whole[name], rtol=0, atol=3e-6)


def test_mistakes_are_named():
    base, models = _models()
    with pytest.raises(ArgumentError, match="origin must be one of average, base; got 'zero'"):
        CartSpectrum(base, models, origin="zero")
    spectrum = CartSpectrum(base, models, max_rank_ratio=0.3)
    with pytest.raises(ArgumentError, match=r"rank_ratio must be in \[0, 0.3\], got 0.5"):
        spectrum.state(rank_ratio=0.5)
    with pytest.raises(ArgumentError, match="order 'smallest' needs max_rank_ratio=1"):
        spectrum.state(rank_ratio=0.1, order="smallest")
    with pytest.raises(ArgumentError, match="task must be from 0 to 2, got 3"):
        spectrum.state(rank_ratio=0.1, task=3)
