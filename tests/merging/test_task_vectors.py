"""Merges of task vectors: what the methods do with the models they lead to, about zero."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError

SHAPES = {"a.weight": (12, 10), "b.bias": (7,)}


def _taus(count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        ta.TaskVector({n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}) for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("average", {}),
        ("task_arithmetic", {"scale": 0.4}),
        ("ties", {"density": 0.3}),
        ("dare", {"density": 0.5}),
        ("breadcrumbs", {}),
        ("consensus", {}),
        ("cart", {"rank_ratio": 0.25, "scale": 2.0}),
    ],
)
def test_the_merged_task_vector_leads_to_the_merged_model(method, parameters):
    taus, base = _taus(), {name: 0.5 * torch.randn(shape) for name, shape in SHAPES.items()}
    merged = ta.merge_task_vectors(taus, method, **parameters)
    state = ta.merge(base, [tau.apply(base) for tau in taus], method, **parameters)
    for name, delta in merged.items():
        torch.testing.assert_close(base[name] + delta, state[name], atol=2e-5, rtol=1e-5)


def test_task_arithmetic_is_the_scaled_sum_and_the_average_the_mean():
    taus = _taus()
    total = ta.merge_task_vectors(taus, scale=0.3)
    mean = ta.merge_task_vectors(taus, "average")
    for name in SHAPES:
        torch.testing.assert_close(total[name], 0.3 * sum(tau[name] for tau in taus))
        torch.testing.assert_close(mean[name], sum(tau[name] for tau in taus) / 3)


def test_a_tensor_that_one_lacks_is_zero_there_and_sparse_ones_are_taken():
    one, two = _taus(2)
    short = ta.TaskVector({"b.bias": two["b.bias"]})
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    sparse = ta.SparseTaskVector.between(zeros, dict(one))
    merged = ta.merge_task_vectors([sparse, short], scale=1.0)
    assert torch.equal(merged["a.weight"], one["a.weight"])
    torch.testing.assert_close(merged["b.bias"], one["b.bias"] + two["b.bias"])
    with pytest.raises(ArgumentError, match="taus must hold at least one task vector, got none"):
        ta.merge_task_vectors([])
