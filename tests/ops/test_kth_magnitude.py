"""kth_magnitude beyond the contract's samples: sizes, ties, layouts that fool a sample, NaN, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.kth_magnitude import OP, kth_magnitude

SIZES = (1, 31, 33, 4097, 65536, 65537, 2**20 + 1)
KINDS = ("normal", "few values", "one value", "zeros", "sorted", "rare large", "nan", "tiny")

pytestmark = pytest.mark.skipif(OP.absent("cpu") is not None, reason=str(OP.absent("cpu")))


def _values(kind, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, generator=g)
    return {
        "normal": noise,
        "few values": noise.round(),
        "one value": torch.full((n,), 0.5),
        "zeros": torch.where(noise > 1.5, noise, 0.0),
        "sorted": noise.sort().values,
        "rare large": torch.where(torch.arange(n) % 4096 < 3, noise + 9, noise),
        "nan": torch.where(torch.arange(n) % 3 == 0, torch.nan, torch.where(noise > 1, torch.inf, noise)),
        "tiny": noise * 1e-44,
    }[kind]


def _kept(task, thresholds, cutoffs):
    """Mask by the operator's definition, NaN above infinity."""
    m = np.nan_to_num(np.abs(task.numpy()).astype(np.float64), nan=np.inf, posinf=1e300)
    limit = np.nan_to_num(float(thresholds), nan=np.inf, posinf=1e300)
    return m, (m > limit) | ((m == limit) & (np.arange(m.size) < int(cutoffs)))


def _assert_kept(task, k, thresholds, cutoffs):
    m, mask = _kept(task, thresholds, cutoffs)
    assert mask.sum() == k
    if 0 < k < m.size:
        assert m[mask].min() >= m[~mask].max()
        border = np.flatnonzero(m == m[mask].min())
        assert mask[border][: mask[border].sum()].all(), "the first ties are kept"


def _split(x, at):
    return [x[:at], x[at:at], x[at:]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_exactly_k_are_kept(n, kind):
    tasks = [_values(kind, n, seed) for seed in range(2)]
    zeros = _split(torch.zeros(n), n // 3)
    for k in sorted({1, min(2, n), max(1, n // 5), max(1, n - 1), n}):
        thresholds, cutoffs = kth_magnitude(zeros, [_split(t, n // 3) for t in tasks], k, backend="cpu")
        for t, task in enumerate(tasks):
            _assert_kept(task, k, thresholds[0, t], cutoffs[0, t])


def test_thresholds_at_the_border_of_two_clusters_are_exact():
    """Two narrow clusters a million times further apart than wide, in blocks: k falls at their borders."""
    n = 2**20
    blocks = torch.arange(n) // 65536
    task = torch.where(blocks % 2 == 0, 1.0, 2.0) + torch.rand(n, generator=torch.Generator().manual_seed(0)) * 1e-6
    for k in (1, n // 2 - 1, n // 2, n // 2 + 1, n):
        thresholds, cutoffs = kth_magnitude([torch.zeros(n)], [[task]], k, backend="cpu")
        _assert_kept(task, k, thresholds[0, 0], cutoffs[0, 0])


def test_a_sample_of_repeated_small_tensors_is_still_exact():
    """Tensors of one element stand for 16 in the sample, so its quantiles are far from the truth."""
    small = [torch.full((1,), 5.0 + i) for i in range(3000)]
    large = [_values("normal", 80000)]
    task = small + large
    flat = torch.cat(task)
    for k in (1, 3000, 3001, 20000):
        thresholds, cutoffs = kth_magnitude([torch.zeros_like(x) for x in task], [task], k, backend="cpu")
        _assert_kept(flat, k, thresholds[0, 0], cutoffs[0, 0])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, float("inf"), float("nan")]), min_size=1, max_size=40
    ),
    data=st.data(),
)
def test_small_inputs_full_of_ties(values, data):
    task = torch.tensor(values)
    k = data.draw(st.integers(1, len(values)))
    at = data.draw(st.integers(0, len(values)))
    thresholds, cutoffs = kth_magnitude(_split(torch.zeros(len(values)), at), [_split(task, at)], k, backend="cpu")
    _assert_kept(task, k, thresholds[0, 0], cutoffs[0, 0])


@pytest.mark.parametrize("kind", ["normal", "few values"])
def test_bytes_do_not_depend_on_the_number_of_threads_for_large_inputs(kind):
    base, tasks, before = (
        [torch.zeros(300001)],
        [[_values(kind, 300001, s)] for s in range(3)],
        torch.get_num_threads(),
    )
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kth_magnitude(base, tasks, 60000, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0]) and torch.equal(other[1], results[0][1])


def test_rows_and_tensors_equal_separate_calls():
    base, task = torch.zeros(9, 70000), _values("few values", 630000).reshape(9, 70000)
    rows = kth_magnitude([base], [[task]], [5000], scope="row", backend="cpu")
    apart = kth_magnitude(list(base), [list(task)], [5000] * 9, scope="tensor", backend="cpu")
    single = [kth_magnitude([b], [[t]], 5000, backend="cpu") for b, t in zip(base, task, strict=True)]
    for i in range(2):
        assert torch.equal(rows[i], apart[i])
        assert torch.equal(rows[i], torch.cat([s[i] for s in single]))


def test_bad_arguments_are_named():
    base, task = [torch.zeros(3)], [[torch.ones(3)]]
    with pytest.raises(ArgumentError, match=r"k\[0\] must be in \[0, 3\].*got 4"):
        kth_magnitude(base, task, 4)
    with pytest.raises(ArgumentError, match="k must have 1 entries for scope='tensor', got 2"):
        kth_magnitude(base, task, [1, 1], scope="tensor")
    with pytest.raises(ArgumentError, match="scope must be one of global, tensor, row; got 'layer'"):
        kth_magnitude(base, task, 1, scope="layer")
    with pytest.raises(ArgumentError, match=r"finetuned\[0\]\[0\] must be"):
        kth_magnitude(base, [[torch.ones(4)]], 1)
