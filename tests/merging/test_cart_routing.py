"""CART with the task known: one model a task."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.arithmetic import average, task_arithmetic
from taskarith_fast.merging.cart import cart
from tests.merging.test_cart import BLOCK, MATRICES, _models, _truncate


def _route(base, models, **parameters):
    return ta.merge_per_task(base, models, "cart_routing", **parameters)


@pytest.mark.parametrize("origin", ["average", "base"])
@pytest.mark.parametrize(("rank_ratio", "scale"), [(0.08, 1.0), (0.3, 1.7), (1.0, -0.5)])
def test_equals_the_formula_for_every_task(origin, rank_ratio, scale):
    base, models = _models()
    states = _route(base, models, rank_ratio=rank_ratio, scale=scale, origin=origin)
    assert [list(state) for state in states] == [list(base)] * 3
    for name in base:
        if name == "step":
            continue
        start = sum(m[name].double() for m in models) / 3 if origin == "average" else base[name].double()
        for state, model in zip(states, models, strict=True):
            delta = model[name].double() - start
            if name in MATRICES:
                delta = _truncate(delta, max(1, int(rank_ratio * min(delta.shape))))
            torch.testing.assert_close(state[name], (start + scale * delta).float(), rtol=0, atol=2e-6)
    assert all(torch.equal(state["step"], base["step"]) for state in states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_rank_gives_the_models_and_scale_zero_the_origin(dtype):
    base, models = _models(dtype=dtype)
    for origin, start in (("average", average(base, models)), ("base", base)):
        for state, model in zip(_route(base, models, rank_ratio=1.0, origin=origin), models, strict=True):
            for name in base:
                torch.testing.assert_close(state[name], model[name], rtol=1e-6, atol=1e-6)
        for state in _route(base, models, scale=0.0, origin=origin):
            assert all(torch.equal(state[name], start[name]) for name in base)


def test_the_parts_of_all_tasks_add_up_to_cart():
    base, models = _models()
    states, merged, mean = _route(base, models, scale=1.3), cart(base, models, scale=1.3), average(base, models)
    for name in MATRICES:
        parts = sum(state[name] - mean[name] for state in states)
        torch.testing.assert_close(mean[name] + parts, merged[name], rtol=0, atol=3e-6)


def test_what_is_not_decomposed_is_task_arithmetic_of_the_task_alone():
    base, models = _models()
    states = _route(base, models, scale=0.4, origin="base")
    name = BLOCK + "ln_1.weight"
    for state, model in zip(states, models, strict=True):
        assert torch.equal(state[name], task_arithmetic(base, [model], scale=0.4)[name])


def test_a_fused_projection_can_be_split():
    base, models = _models()
    name = BLOCK + "attn.in_proj_weight"
    whole, split = (_route(base, models, rank_ratio=0.2, split_qkv=s)[0][name] for s in (False, True))
    mean = sum(m[name].double() for m in models) / 3
    delta = models[0][name].double() - mean
    truth = mean + torch.cat([_truncate(part, 4) for part in delta.split(24)])
    torch.testing.assert_close(split, truth.float(), rtol=0, atol=2e-6)
    assert not torch.allclose(split, whole, atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rank_ratio": 0.0}, r"rank_ratio must be in \(0, 1\], got 0.0"),
        ({"scale": float("inf")}, "scale must be finite, got inf"),
        ({"origin": "zero"}, "origin must be one of average, base; got 'zero'"),
        ({"svd": "fast"}, "svd must be one of certified, exact; got 'fast'"),
        ({"order": "smallest"}, "method 'cart_routing' has the parameters rank_ratio, .* got 'order'"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        _route(*_models(), **parameters)
