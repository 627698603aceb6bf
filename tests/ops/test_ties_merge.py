"""ties_merge beyond the contract's samples: every rule against the book, exact bytes, threads, errors."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.ties_merge import COMBINES, ELECTS, OP, ZERO_SIGNS, ties_merge
from tests.ops.ties_by_the_book import merged

RULES = list(itertools.product(ELECTS, COMBINES, ZERO_SIGNS))


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    reason = OP.absent(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


def _keep_all(tasks):
    return torch.zeros(1, tasks)


def _check(deltas, backend, rules):
    base = torch.zeros(deltas.shape[1])
    for elect, combine, zero_sign in rules:
        out = ties_merge(
            [base], [[d] for d in deltas], _keep_all(len(deltas)),
            elect=elect, combine=combine, zero_sign=zero_sign, backend=backend,
        )  # fmt: skip
        truth = merged(deltas.double().numpy(), elect, combine, zero_sign)
        np.testing.assert_allclose(out[0].numpy(), truth, rtol=1e-7, atol=0, err_msg=f"{elect} {combine} {zero_sign}")


@pytest.mark.parametrize("tasks", [1, 2, 4, 7, 8])
def test_every_rule_equals_the_book(backend, tasks):
    g = torch.Generator().manual_seed(tasks)
    _check(torch.randn(tasks, 1003, generator=g), backend, RULES)
    _check(torch.randint(-2, 3, (tasks, 1003), generator=g).float(), backend, RULES)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_small_inputs_whose_votes_cancel(rows):
    deltas = torch.tensor(rows).T.contiguous()
    for backend in ("reference", "cpu"):
        if OP.absent(backend) is None:
            _check(deltas, backend, RULES)


@pytest.mark.parametrize(("signs", "expected"), [((1, 1, -1), 2.0), ((-1, -1, 1), -2.0), ((1, -1, 0), -2.0)])
def test_a_cancelled_vote_takes_the_global_majority(backend, signs, expected):
    """With no majority either, the published code takes the negative deltas."""
    rest = torch.tensor([float(s) for s in signs])
    tasks = [torch.cat([torch.tensor([2.0]), rest]), torch.cat([torch.tensor([-2.0]), rest])]
    out = ties_merge([torch.zeros(4)], [[t] for t in tasks], _keep_all(2), backend=backend)[0]
    assert out.tolist() == [expected, *rest.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_task_kept_whole_gives_back_its_bytes(backend, dtype):
    base, task = torch.randn(5001).to(dtype), (torch.randn(5001) * 1e-2).to(dtype)
    assert torch.equal(ties_merge([base], [[task]], _keep_all(1), backend=backend)[0], task)


def test_a_cutoff_drops_the_ties_after_it(backend):
    base, task = torch.zeros(600), torch.ones(600)
    out = ties_merge([base], [[task]], torch.ones(1, 1), torch.tensor([[300]]), backend=backend)[0]
    assert out.tolist() == [1.0] * 300 + [0.0] * 300


@pytest.mark.parametrize("elect", ELECTS)
def test_bytes_do_not_depend_on_the_number_of_threads_for_large_inputs(elect):
    if OP.absent("cpu"):
        pytest.skip(str(OP.absent("cpu")))
    g, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    base, tasks = [torch.zeros(200001)], [[torch.randn(200001, generator=g).round()] for _ in range(3)]
    outs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(ties_merge(base, tasks, _keep_all(3), elect=elect, backend="cpu")[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(outs[0], o) for o in outs[1:])


def test_bad_arguments_are_named():
    base, tasks = [torch.zeros(3)], [[torch.ones(3)]]
    for name in ("elect", "combine", "zero_sign", "scope"):
        with pytest.raises(ArgumentError, match=rf"{name} must be one of .*; got 'most'"):
            ties_merge(base, tasks, _keep_all(1), **{name: "most"})
    with pytest.raises(ArgumentError, match=r"thresholds must be torch.float32 of shape \[S=1, T=1\], got .*\[1, 2\]"):
        ties_merge(base, tasks, _keep_all(2))
    with pytest.raises(ArgumentError, match=r"cutoffs must be torch\.int64"):
        ties_merge(base, tasks, _keep_all(1), torch.zeros(1, 1))
