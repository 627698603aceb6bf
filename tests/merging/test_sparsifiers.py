"""dare, breadcrumbs, tall_mask and consensus on models, against an independent dense float64 computation."""

import numpy as np
import pytest
import torch

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging.arithmetic import task_arithmetic
from taskarith_fast.merging.breadcrumbs import breadcrumbs
from taskarith_fast.merging.dare import dare, dare_models, dare_ties
from taskarith_fast.merging.tall_mask import consensus, tall_mask, tall_masks
from taskarith_fast.merging.ties import ties
from taskarith_fast.ops import unpack_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SINGLE = (dare, dare_ties, breadcrumbs, consensus)


def models(dtype=torch.float32, tasks=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    base = {
        "conv1.weight": torch.randn(6, 3, 5, 5, generator=g),
        "blocks.0.attn.in_proj_weight": torch.randn(12, 40, generator=g),
        "blocks.0.ln_1.bias": torch.randn(40, generator=g),
        "logit_scale": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
        "counter": torch.tensor([3, 1]),
    }
    base = {k: v.to(dtype) if v.is_floating_point() else v for k, v in base.items()}
    finetuned = [
        {
            k: (v.float() + 0.1 * torch.randn(v.shape, generator=g)).to(dtype) if v.is_floating_point() else v.clone()
            for k, v in base.items()
        }
        for _ in range(tasks)
    ]
    return base, finetuned


def deltas_of(base, finetuned, name):
    return np.stack([(m[name].double() - base[name].double()).numpy() for m in finetuned])


def assert_rounds_to(value, expected):
    """Within one unit in the last place of the float64 result: orders of additions differ."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    bound = torch.finfo(value.dtype).eps * (expected.abs() + 1e-12)
    assert ((value.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("density", "outliers"), [(0.2, 0.1), (0.05, 0.0), (0.9, 0.5), (1.0, 0.0)])
def test_breadcrumbs_equals_the_published_recipe(dtype, density, outliers):
    base, finetuned = models(dtype)
    merged = breadcrumbs(base, finetuned, density=density, outliers=outliers, scale=0.4)
    for name in ("conv1.weight", "blocks.0.attn.in_proj_weight", "blocks.0.ln_1.bias"):
        total = base[name].double().numpy().copy()
        for model in finetuned:
            delta = (model[name].double() - base[name].double()).numpy()
            magnitude = np.abs(model[name].float().numpy() - base[name].float().numpy())
            n = delta.shape[-1]
            order = np.argsort(-magnitude, axis=-1, kind="stable")
            mask = np.zeros(delta.shape)
            first = int(n * outliers)
            np.put_along_axis(mask, order[..., first : first + int(n * density)], 1.0, -1)
            total += 0.4 * mask * delta
        assert_rounds_to(merged[name], total)
    scalar = base["logit_scale"].double() + 0.4 * deltas_of(base, finetuned, "logit_scale").sum()
    assert_rounds_to(merged["logit_scale"], scalar)


def test_breadcrumbs_counts_in_the_whole_tensor_when_asked():
    base, finetuned = models(tasks=1)
    merged = breadcrumbs(base, finetuned, scope="tensor", scale=1.0)
    changed = (merged["conv1.weight"] != base["conv1.weight"]).flatten()
    assert changed.sum() == int(450 * 0.2)
    magnitude = (finetuned[0]["conv1.weight"] - base["conv1.weight"]).abs().flatten()
    assert (magnitude > magnitude[changed].max()).sum() == int(450 * 0.1)


def test_breadcrumbs_of_rows_too_short_to_keep_one_entry_is_the_base():
    base, finetuned = models()
    merged = breadcrumbs(base, finetuned, density=0.19)
    assert torch.equal(merged["conv1.weight"], base["conv1.weight"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_dare_keeps_rescaled_deltas_or_nothing(dtype):
    base, finetuned = models(dtype)
    for model, dropped in zip(finetuned, dare_models(base, finetuned, density=0.25, seed=7), strict=True):
        for name in ("conv1.weight", "blocks.0.attn.in_proj_weight"):
            kept = base[name].double() + 4 * (model[name].double() - base[name].double())
            is_base = dropped[name] == base[name]
            assert_rounds_to(dropped[name][~is_base], kept[~is_base])
            assert 0.1 < 1 - is_base.double().mean() < 0.4


def test_dare_is_the_weighted_sum_of_its_dropped_models():
    base, finetuned = models()
    merged = dare(base, finetuned, density=0.3, scale=[0.5, 0.2, -0.1], seed=3)
    dropped = dare_models(base, finetuned, density=0.3, seed=3)
    expected = task_arithmetic(base, dropped, scale=[0.5, 0.2, -0.1])
    for name in ("conv1.weight", "logit_scale"):
        torch.testing.assert_close(merged[name], expected[name], rtol=1e-6, atol=1e-6)


def test_dare_at_density_one_is_task_arithmetic():
    base, finetuned = models()
    merged, expected = dare(base, finetuned, density=1.0), task_arithmetic(base, finetuned)
    assert all(torch.equal(merged[k], expected[k]) for k in base)


def test_dare_without_rescaling_adds_the_deltas_themselves():
    base, finetuned = models(tasks=1)
    name = "blocks.0.attn.in_proj_weight"
    dropped = dare_models(base, finetuned, density=0.5, rescale=False)[0][name]
    assert ((dropped == base[name]) | (dropped == finetuned[0][name])).all()


def test_dare_depends_on_seed_task_and_name_but_not_on_other_tensors_or_their_order():
    base, finetuned = models()
    name = "blocks.0.attn.in_proj_weight"
    merged = dare(base, finetuned, seed=5)
    alone = dare({name: base[name]}, [{name: m[name]} for m in finetuned], seed=5)
    turned = dare(dict(reversed(base.items())), [dict(reversed(m.items())) for m in finetuned], seed=5)
    assert torch.equal(merged[name], alone[name]) and torch.equal(merged[name], turned[name])
    assert not torch.equal(merged[name], dare(base, finetuned, seed=6)[name])
    other = dare({"x": base[name]}, [{"x": m[name]} for m in finetuned], seed=5)["x"]
    assert not torch.equal(merged[name], other)
    same = [finetuned[0], finetuned[0]]
    first, second = (d[name] for d in dare_models(base, same, seed=5))
    assert not torch.equal(first, second)


def test_dare_keeps_the_expectation():
    base, finetuned = models(tasks=1)
    name = "blocks.0.attn.in_proj_weight"
    delta = deltas_of(base, finetuned, name)[0]
    draws = [dare_models(base, finetuned, density=0.5, seed=s)[0][name] for s in range(400)]
    mean = torch.stack(draws).double().mean(0).numpy() - base[name].double().numpy()
    assert np.abs(mean - delta).max() < 6 * np.abs(delta).max() / 20  # each draw has deviation |delta|


def test_dare_ties_is_ties_of_the_dropped_models():
    base, finetuned = models()
    merged = dare_ties(base, finetuned, density=0.4, ties_density=0.3, seed=2)
    expected = ties(base, dare_models(base, finetuned, density=0.4, seed=2), density=0.3)
    assert all(torch.equal(merged[k], expected[k]) for k in base)


def _exact_masks(deltas, lambdas):
    rest = deltas.sum(0, keepdims=True) - deltas
    return np.abs(deltas) > np.array(lambdas).reshape(-1, *[1] * (deltas.ndim - 1)) * np.abs(rest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tall_mask_gives_one_model_a_task(dtype):
    base, finetuned = models(dtype)
    lambdas = [0.2, 0.4, 0.6]
    masks = tall_masks(base, finetuned, tall_lambda=lambdas)
    states = tall_mask(base, finetuned, tall_lambda=lambdas)
    assert [list(s) for s in states] == [list(base)] * 3
    for name in ("conv1.weight", "blocks.0.ln_1.bias", "logit_scale"):
        deltas = deltas_of(base, finetuned, name)
        exact = _exact_masks(deltas, lambdas)
        for t, state in enumerate(states):
            mask = unpack_bits([masks[name][t]], [base[name].shape])[0]
            assert np.array_equal(mask.numpy(), exact[t])
            assert_rounds_to(state[name], base[name].double().numpy() + exact[t] * deltas.sum(0))


@pytest.mark.parametrize("threshold", [0, 1, 2, 3])
def test_consensus_keeps_what_enough_tasks_need(threshold):
    base, finetuned = models()
    merged = consensus(base, finetuned, threshold=threshold, scale=0.7)
    for name in ("conv1.weight", "logit_scale"):
        deltas = deltas_of(base, finetuned, name)
        agreed = _exact_masks(deltas, [0.4] * 3).sum(0) >= threshold
        assert_rounds_to(merged[name], base[name].double().numpy() + 0.7 * agreed * deltas.sum(0))


@pytest.mark.parametrize("method", SINGLE)
def test_equal_models_stay_the_base(method):
    base, _ = models()
    merged = method(base, [base, base])
    assert list(merged) == list(base) and all(torch.equal(merged[k], base[k]) for k in base)


@pytest.mark.parametrize("method", [*SINGLE, tall_mask])
def test_models_that_do_not_fit_are_refused(method):
    base, finetuned = models()
    with pytest.raises(ArgumentError, match="at least one model"):
        method(base, [])
    finetuned[1]["conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"conv1\.weight"):
        method(base, finetuned)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        (dare, {"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        (dare, {"seed": "x"}, "seed must be an integer, got 'x'"),
        (dare, {"scale": [1.0]}, "scale must be one number or 3"),
        (dare_ties, {"ties_density": 2.0}, r"ties_density must be in \(0, 1\], got 2.0"),
        (breadcrumbs, {"density": 1.1}, r"density must be in \(0, 1\], got 1.1"),
        (breadcrumbs, {"outliers": 1.0}, r"outliers must be in \[0, 1\), got 1.0"),
        (breadcrumbs, {"scope": "global"}, "scope must be one of row, tensor; got 'global'"),
        (consensus, {"threshold": 4}, "threshold must be a whole number from 0 to 3, .* got 4"),
        (consensus, {"threshold": 1.5}, "threshold must be a whole number"),
        (consensus, {"scale": float("inf")}, "scale must be finite"),
        (tall_mask, {"tall_lambda": -0.1}, "tall_lambda must not be negative, got -0.1"),
        (tall_mask, {"tall_lambda": [0.1]}, r"tall_lambda must be one number or 3 \(one a task\), got 1"),
    ],
)
def test_bad_arguments_cost_one_line(method, parameters, message):
    with pytest.raises(ArgumentError, match=message) as error:
        method(*models(), **parameters)
    assert "\n" not in str(error.value)
