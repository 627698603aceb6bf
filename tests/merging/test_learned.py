"""Merges as functions of their coefficients, and the parameters of the methods that learn them."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging import coefficients as module
from taskarith_fast.merging.cart import cart, is_cart_matrix
from taskarith_fast.merging.coefficients import DeltaMerge, LowRankMerge
from taskarith_fast.merging.learned import AdaMerging, AdaMergingPlusPlus, CartPlusPlus
from taskarith_fast.merging.methods import LEARNED
from taskarith_fast.merging.ties import agreeing_models, ties
from tests.merging.test_cart import _models

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _like(state):
    return {name: torch.full_like(tensor, 7) for name, tensor in state.items()}


def _coefficients(tasks, length):
    return torch.rand(tasks, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _grads(merge, base):
    g = torch.Generator().manual_seed(2)
    return {name: torch.randn(base[name].shape, generator=g).to(base[name].dtype) for name in merge.names}


def _gradient_by_autograd(written, merge, grads):
    """d sum_l <grads[l], theta[l](c)> / d c through a float64 expression of the merge."""
    c = _coefficients(3, len(merge.names)).requires_grad_(True)
    total = sum((written(name, c[:, i]) * grads[name].double()).sum() for i, name in enumerate(merge.names))
    return torch.autograd.grad(total, c)[0]


def test_equal_coefficients_give_task_arithmetic_bit_for_bit():
    base, models = _models()
    merge, into = DeltaMerge(base, models), _like(base)
    merge.write(torch.full((3, len(merge.names)), 0.3, dtype=torch.float64), into)
    expected = ta.merge(base, models, "task_arithmetic", scale=0.3)
    assert merge.names == tuple(name for name in base if name != "step")
    assert all(torch.equal(into[name], expected[name]) for name in merge.names)


def test_groups_of_tensors_change_nothing(monkeypatch):
    base, models = _models()
    merge, whole, parts = DeltaMerge(base, models), _like(base), _like(base)
    table = _coefficients(3, len(merge.names))
    merge.write(table, whole)
    monkeypatch.setattr(module, "_GROUP", 100)
    assert len(list(module._groups([t.numel() for t in base.values()]))) > 4
    merge.write(table, parts)
    assert all(torch.equal(whole[name], parts[name]) for name in merge.names)


def test_gradient_of_added_deltas_is_that_of_autograd():
    base, models = _models()
    merge = DeltaMerge(base, models)
    grads = _grads(merge, base)

    def theta(name, column):
        deltas = torch.stack([m[name].double() - base[name].double() for m in models])
        return base[name].double() + torch.tensordot(column, deltas, 1)

    expected = _gradient_by_autograd(theta, merge, grads)
    torch.testing.assert_close(merge.gradient(grads), expected, rtol=1e-12, atol=1e-12)


def test_a_tensor_without_gradient_counts_as_zero():
    base, models = _models()
    for merge in (DeltaMerge(base, models), LowRankMerge(base, models, rank_ratio=0.2, svd="exact")):
        grads = _grads(merge, base)
        whole = merge.gradient(grads)
        left_out = merge.names[1]
        del grads[left_out]
        found = merge.gradient(grads)
        assert torch.equal(found[:, 1], torch.zeros(3)) and torch.equal(found[:, 0], whole[:, 0]) and whole[0, 1] != 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_parts_with_equal_coefficients_are_cart(dtype):
    base, models = _models(dtype=dtype)
    merge, into = LowRankMerge(base, models, rank_ratio=0.2, svd="certified"), _like(base)
    merge.write(torch.full((3, len(merge.names)), 1.5, dtype=torch.float64), into)
    expected = cart(base, models, rank_ratio=0.2, scale=1.5)
    assert merge.names == tuple(name for name in base if is_cart_matrix(name, base[name]))
    for name in base:
        if name in merge.names:
            torch.testing.assert_close(into[name], expected[name], rtol=torch.finfo(dtype).eps, atol=2e-6)
        else:
            assert torch.equal(into[name], expected[name])


def test_gradient_of_low_rank_parts_is_that_of_autograd_through_the_whole_matrices():
    base, models = _models()
    merge = LowRankMerge(base, models, rank_ratio=0.2, svd="exact")
    grads = _grads(merge, base)

    def theta(name, column):
        mean = sum(m[name].double() for m in models) / len(models)
        rank, total = max(1, int(0.2 * min(mean.shape))), mean
        for c, model in zip(column, models, strict=True):
            u, s, vh = torch.linalg.svd(model[name].double() - mean, full_matrices=False)
            total = total + c * ((u[:, :rank] * s[:rank]) @ vh[:rank])
        return total

    expected = _gradient_by_autograd(theta, merge, grads)
    torch.testing.assert_close(merge.gradient(grads), expected, rtol=2e-5, atol=2e-5)


def test_low_rank_parts_keep_factors_and_not_the_models():
    base, models = _models()
    merge = LowRankMerge(base, models, rank_ratio=0.1, svd="certified")
    for name, left, right in zip(merge.names, merge._left, merge._right, strict=True):
        m, n = base[name].shape
        assert left.shape == (m, 3, 2) and right.shape == (3 * 2, n)


def test_a_model_without_blocks_has_no_low_rank_parts():
    state = {"embedding": torch.randn(3, 4)}
    with pytest.raises(CheckpointError, match="base must have matrices inside transformer blocks, got none"):
        LowRankMerge(state, [state], rank_ratio=0.1, svd="certified")


@pytest.mark.parametrize("dtype", DTYPES)
def test_agreeing_models_have_weights_of_base_or_model_and_sum_to_ties(dtype):
    base, models = _models(dtype=dtype)
    agreeing = agreeing_models(base, models, density=0.3)
    merged = ties(base, models, density=0.3, combine="sum")
    for name in base:
        if name == "step":
            continue
        total = base[name].double()
        for own, model in zip(agreeing, models, strict=True):
            assert list(own) == list(base) and own[name].dtype == dtype
            assert ((own[name] == model[name]) | (own[name] == base[name])).all()
            total = total + own[name].double() - base[name].double()
        assert torch.equal(total.to(dtype), merged[name])


def test_agreeing_models_keep_what_a_plain_reading_of_ties_keeps():
    base, models = _models()
    names = sorted(n for n in base if n != "step")
    deltas = torch.stack([torch.cat([(m[n] - base[n]).flatten() for n in names]) for m in models])
    keep = max(1, int(0.3 * deltas.shape[1]))
    thresholds = deltas.abs().sort(descending=True).values[:, keep - 1, None]
    trimmed = deltas * (deltas.abs() >= thresholds)
    expected = (trimmed != 0) & (trimmed.sign() == trimmed.double().sum(0).sign())
    agreeing = agreeing_models(base, models, density=0.3)
    for own, kept in zip(agreeing, expected, strict=True):
        found = torch.cat([(own[n] != base[n]).flatten() for n in names])
        assert 0 < kept.sum() < keep and torch.equal(found, kept)


def test_the_clamp_is_applied_and_closes_what_has_left_it():
    table = torch.tensor([[-0.1, 0.0, 0.4, 1.0, 1.1]], dtype=torch.float64)
    clamped, free = AdaMerging(), AdaMerging(clamp=False)
    assert clamped.used(table).tolist() == [[0.0, 0.0, 0.4, 1.0, 1.0]]
    assert clamped.open(table).tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]
    assert torch.equal(free.used(table), table) and free.open(table).all()


def test_the_table_of_methods_shows_what_learns_from_images():
    rows = {name: ta.merge_methods()[name] for name in LEARNED}
    assert all("images" in row["needs"] for row in rows.values())
    assert rows["adamerging"]["parameters"] == {
        "task_wise": False, "start": 0.3, "lr": 1e-3, "steps": 500, "batches_per_step": 1, "clamp": True, "seed": 0,
    }  # fmt: skip
    assert rows["adamerging_plus_plus"]["parameters"]["ties_density"] == 0.2
    assert rows["cart_plus_plus"]["parameters"]["start"] == 1.0
    assert rows["cart_plus_plus"]["parameters"]["rank_ratio"] == 0.08


@pytest.mark.parametrize("name", LEARNED)
def test_merging_weights_alone_points_at_adamerge(name):
    base, models = _models()
    with pytest.raises(ArgumentError, match=rf"{name}' learns from images.*use adamerge\(.*method='{name}'\)"):
        ta.merge(base, models, name)
    plan = ta.plan_merge("base.safetensors", ["a.safetensors"], "out.safetensors", method=name)
    assert any("learns from images" in str(problem) for problem in plan.problems)


@pytest.mark.parametrize(
    ("make", "parameters", "message"),
    [
        (AdaMerging, {"start": 1.5}, r"start must be in \[0, 1\] while clamp is on, got 1.5; pass clamp=False"),
        (AdaMerging, {"start": float("nan")}, "start must be finite, got nan"),
        (AdaMerging, {"lr": 0.0}, "lr must be above 0 and finite, got 0.0"),
        (AdaMerging, {"steps": -1}, "steps must not be negative, got -1"),
        (AdaMerging, {"steps": "many"}, "steps must be int such as 500, got 'many'"),
        (AdaMerging, {"steps": 2.5}, "steps must be int such as 500, got 2.5"),
        (AdaMerging, {"clamp": "no"}, "clamp must be bool such as True, got 'no'"),
        (AdaMerging, {"lr": True}, "lr must be float such as 0.001, got True"),
        (AdaMerging, {"batches_per_step": 0}, "batches_per_step must be at least 1, got 0"),
        (AdaMergingPlusPlus, {"ties_density": 0.0}, r"ties_density must be in \(0, 1\], got 0.0"),
        (CartPlusPlus, {"rank_ratio": 2.0}, r"rank_ratio must be in \(0, 1\], got 2.0"),
        (CartPlusPlus, {"svd": "fast"}, "svd must be one of certified, exact; got 'fast'"),
        (CartPlusPlus, {"clamp": True, "start": 2.0}, r"start must be in \[0, 1\] while clamp is on"),
    ],
)
def test_bad_parameters_are_named(make, parameters, message):
    with pytest.raises(ArgumentError, match=message):
        make(**parameters)
