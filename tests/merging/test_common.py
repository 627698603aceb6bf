"""What every method refuses, and what it copies."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.merging import METHODS, merge, merge_methods
from tests.merging.stream_cases import make_statistics


@pytest.fixture
def models():
    g = torch.Generator().manual_seed(0)
    base = {
        "blocks.0.attn.in_proj_weight": torch.randn(12, 4, generator=g),
        "blocks.0.mlp.c_fc.weight": torch.randn(16, 4, generator=g),
        "blocks.0.ln_1.bias": torch.randn(4, generator=g),
        "logit_scale": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
        "counter": torch.tensor([3, 1]),
    }
    finetuned = [
        {
            k: v + 0.1 * torch.randn(v.shape, generator=g) if v.is_floating_point() else v.clone()
            for k, v in base.items()
        }
        for _ in range(3)
    ]
    return base, finetuned


@pytest.mark.parametrize("method", METHODS)
def test_output_has_the_keys_shapes_and_dtypes_of_the_base(method, models):
    base, finetuned = models
    merged = merge(base, finetuned, method, **make_statistics(method, [base, *finetuned]))
    assert list(merged) == list(base)
    for name, value in merged.items():
        assert value.shape == base[name].shape and value.dtype == base[name].dtype
        assert value.data_ptr() not in {m[name].data_ptr() for m in (base, *finetuned)} or value.numel() == 0
    assert torch.equal(merged["counter"], base["counter"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_merge(method, dtype, models):
    base, finetuned = models
    half = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in m.items()} for m in (base, *finetuned)]
    merged = merge(half[0], half[1:], method, **make_statistics(method, half))
    assert merged["logit_scale"].dtype == dtype


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("logit_scale"), r"finetuned\[1\] lacks logit_scale"),
        (lambda m: m.update(extra=torch.ones(1)), r"finetuned\[1\] has, unlike base, extra"),
        (lambda m: m.update(logit_scale=torch.ones(2)), r"logit_scale: shape must be \[\] as in base, got \[2\]"),
        (lambda m: m.update(logit_scale=torch.tensor(1.0).half()), r"logit_scale: dtype must be torch.float32"),
        (lambda m: m["blocks.0.ln_1.bias"].fill_(float("nan")), r"ln_1.bias: .* got 4 NaN or Inf .* first at \[0\]"),
        (lambda m: m["blocks.0.mlp.c_fc.weight"][3:4, 2].fill_(float("inf")), r"finite, got 1 .* first at \[3, 2\]"),
        (lambda m: m["counter"].add_(1), r"counter: torch.int64 tensors are copied and must equal base"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name(method, change, message, models):
    base, finetuned = models
    statistics = make_statistics(method, [base, *finetuned])
    change(finetuned[1])
    with pytest.raises(CheckpointError, match=message) as error:
        merge(base, finetuned, method, **statistics)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_no_task_is_refused(method, models):
    with pytest.raises(ArgumentError, match="finetuned must hold at least one model"):
        merge(models[0], [], method)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("tise", {}, "did you mean 'ties'"),
        ("ties", {"densty": 0.2}, "did you mean 'density'"),
        ("average", {"scale": 1.0}, "has the parameters none; got 'scale'"),
        ("ties", {"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ("ties", {"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ("ties", {"elect": "vote"}, "elect must be one of"),
        ("cart", {"rank_ratio": 0.0}, r"rank_ratio must be in \(0, 1\], got 0.0"),
        ("task_arithmetic", {"scale": [1.0, 2.0]}, r"scale must be one number or 3 \(one a task\), got 2"),
        ("task_arithmetic", {"scale": float("nan")}, "scale must be finite"),
    ],
)
def test_bad_arguments_cost_one_line(method, parameters, message, models):
    with pytest.raises(ArgumentError, match=message) as error:
        merge(*models, method, **parameters)
    assert "\n" not in str(error.value)


def test_average_and_task_arithmetic_equal_the_formula(models):
    base, finetuned = models
    for name in ("blocks.0.mlp.c_fc.weight", "logit_scale"):
        deltas = torch.stack([m[name].double() - base[name].double() for m in finetuned])
        for merged, expected in (
            (merge(base, finetuned, "average"), base[name] + deltas.mean(0)),
            (merge(base, finetuned, "task_arithmetic", scale=0.3), base[name] + 0.3 * deltas.sum(0)),
            (merge(base, finetuned, "task_arithmetic", scale=[1, -1, 0]), base[name] + deltas[0] - deltas[1]),
        ):
            torch.testing.assert_close(merged[name].double(), expected, rtol=2e-7, atol=1e-8)


def test_the_table_shows_defaults_and_papers():
    table = merge_methods()
    assert table["task_arithmetic"]["parameters"] == {"scale": 0.3}
    assert table["average"]["parameters"] == {}
    assert all(row["paper"] and row["needs"] for row in table.values())
    assert table["ties"]["parameters"]["density"] == 0.2 and table["cart"]["parameters"]["rank_ratio"] == 0.08


def test_one_model_a_task(models):
    base, finetuned = models
    states = ta.merge_per_task(base, finetuned, tall_lambda=0.4)
    assert [list(s) for s in states] == [list(base)] * 3
    with pytest.raises(ArgumentError, match="method must be one of tall_mask"):
        ta.merge_per_task(base, finetuned, "ties")
