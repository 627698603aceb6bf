"""`ops.linear` is F.linear by another road: same values to rounding, same gradients, same manners."""

import sys

import pytest
import torch
import torch.nn.functional as F

from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.linear import (
    around_linear,
    linear,
    linear_route,
    measure_linear_routes,
    requested_linear_route,
    resolved_linear_route,
    set_linear_route,
)

SHAPES = {  # input shape without features, in features, out features
    "vit_s_tokens": ((32, 17), 384, 96),
    "odd": ((3, 7), 13, 5),
    "one_row": ((1,), 33, 17),
    "one_dimensional": ((), 33, 17),
    "one_feature": ((5,), 1, 3),
    "one_output": ((130,), 65, 1),
    "four_dimensional": ((2, 3, 5), 31, 8),
    "empty_batch": ((2, 0), 31, 8),
}


@pytest.fixture(autouse=True)
def convolution_route():
    with linear_route("conv1x1"):
        yield


def _operands(case, bias=True, dtype=torch.float32):
    rows, k, o = SHAPES[case]
    generator = torch.Generator().manual_seed(0)
    x, weight, b = (torch.randn(shape, generator=generator) for shape in ((*rows, k), (o, k), (o,)))
    return [t.to(dtype) for t in ((x, weight, b) if bias else (x, weight))]


def _within_budget(truth, ours, torchs, magnitude):
    """Ours may be as far from the truth as torch's result, and four roundings of the sum of |products| more.

    A sum of n float32 products is within n such roundings in any order; torch's own worst here is 2.5.
    """
    tolerance = 4 * torch.finfo(torch.float32).eps * magnitude
    return bool(((truth - ours).abs() <= (truth - torchs).abs() + tolerance).all())


def _values_and_gradients(function, operands, cotangent):
    leaves = [t.detach().clone().requires_grad_() for t in operands]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("case", SHAPES)
def test_values_and_gradients_stay_within_the_error_budget(case, bias):
    operands = _operands(case, bias)
    cotangent = torch.randn(F.linear(*operands).shape, generator=torch.Generator().manual_seed(1))
    exact, absolute = [t.double() for t in operands], [t.double().abs() for t in operands]
    truth = _values_and_gradients(F.linear, exact, cotangent)
    magnitude = _values_and_gradients(F.linear, absolute, cotangent.abs())
    torchs = _values_and_gradients(F.linear, operands, cotangent)
    ours = _values_and_gradients(linear, operands, cotangent)
    for t, o, f, m in zip(truth, ours, torchs, magnitude, strict=True):
        assert o.shape == f.shape and o.dtype == f.dtype
        assert _within_budget(t, o, f, m)


def test_the_budget_sees_products_of_lower_precision():
    operands = _operands("vit_s_tokens")
    truth, magnitude = (
        F.linear(*(t.double() for t in operands)),
        F.linear(*(t.double().abs() for t in operands)),
    )
    rounded = F.linear(*(t.bfloat16().float() for t in operands))
    assert not _within_budget(truth, rounded, F.linear(*operands), magnitude)


def test_repeated_calls_agree_bit_for_bit():
    operands = _operands("vit_s_tokens")
    cotangent = torch.randn(32, 17, 96)
    first = _values_and_gradients(linear, operands, cotangent)
    for _ in range(5):
        again = _values_and_gradients(linear, operands, cotangent)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_non_contiguous_operands_are_read_as_they_are():
    x, weight, bias = _operands("odd")
    strided = torch.stack([x, x], dim=-1)[..., 0]
    transposed = weight.t().contiguous().t()
    every_other = torch.stack([bias, bias], dim=-1)[:, 0]
    assert not strided.is_contiguous() and not transposed.is_contiguous()
    torch.testing.assert_close(linear(strided, transposed, every_other), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(strided, weight, every_other), F.linear(x, weight, bias))


def test_frozen_operands_get_no_gradient():
    x, weight, bias = _operands("odd")
    weight.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert weight.grad is not None and x.grad is None and bias.grad is None


def test_gradients_of_gradients():
    x, weight, bias = (t.double().requires_grad_() for t in _operands("odd"))
    assert torch.autograd.gradgradcheck(linear, (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_left_to_torch(dtype):
    operands = _operands("odd", dtype=dtype)
    assert torch.equal(linear(*operands), F.linear(*operands))


def test_autocast_is_left_to_torch():
    operands = _operands("odd")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, torchs = linear(*operands), F.linear(*operands)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, torchs)


def test_forward_mode_and_vmap_give_torchs_values():
    x, weight, bias = _operands("odd")
    dx = torch.randn_like(x)
    value, tangent = torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (dx,))
    torch.testing.assert_close(value, F.linear(x, weight, bias))
    torch.testing.assert_close(tangent, F.linear(dx, weight))
    torch.testing.assert_close(torch.func.vmap(lambda x: linear(x, weight, bias))(x), F.linear(x, weight, bias))
    with torch.autograd.forward_ad.dual_level():
        dual = linear(torch.autograd.forward_ad.make_dual(x, dx), weight, bias)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, F.linear(dx, weight))


@pytest.mark.parametrize("route", ["auto", "conv1x1"])
def test_torch_compile_sees_one_graph_and_torchs_own_product(route):
    x, weight, bias = _operands("odd")
    with linear_route(route):
        compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, weight, bias), F.linear(x, weight, bias))


def test_shapes_that_do_not_fit_raise_as_torch_does():
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|size mismatch"):
        linear(torch.ones(2, 3), torch.ones(5, 4))


def test_the_convolution_is_really_taken(monkeypatch):
    module, calls = sys.modules["taskarith_fast.ops.linear"], []
    monkeypatch.setattr(module, "_conv1x1", lambda *operands: calls.append(1) or F.linear(*operands))
    operands = _operands("odd")
    linear(*operands)
    with linear_route("linear"):
        linear(*operands)
    assert len(calls) == 1


def test_small_layers_stay_with_torch_when_the_choice_is_free(monkeypatch):
    module = sys.modules["taskarith_fast.ops.linear"]
    monkeypatch.setattr(module, "measured_linear_route", lambda: "conv1x1")
    calls = []
    monkeypatch.setattr(module, "_conv1x1", lambda *operands: calls.append(1) or F.linear(*operands))
    with linear_route("auto"):
        linear(torch.ones(544, 10), torch.ones(4, 10))
        linear(torch.ones(16, 1000), torch.ones(1000, 1000))
        assert not calls
        linear(torch.ones(256, 256), torch.ones(256, 256))
        assert calls


def test_routes_are_chosen_by_argument_then_environment(monkeypatch):
    set_linear_route(None)
    monkeypatch.delenv("TASKARITH_LINEAR", raising=False)
    assert requested_linear_route() == "auto"
    monkeypatch.setenv("TASKARITH_LINEAR", "linear")
    assert requested_linear_route() == resolved_linear_route() == "linear"
    with linear_route("conv1x1"):
        assert resolved_linear_route() == "conv1x1"
    assert requested_linear_route() == "linear"


def test_unknown_routes_are_refused(monkeypatch):
    with pytest.raises(ArgumentError, match="route must be one of auto, linear, conv1x1, got 'mkl'"):
        set_linear_route("mkl")
    set_linear_route(None)
    monkeypatch.setenv("TASKARITH_LINEAR", "fast")
    with pytest.raises(ArgumentError, match="TASKARITH_LINEAR must be one of"):
        linear(torch.ones(2, 3), torch.ones(4, 3))


def test_measuring_leaves_no_trace():
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode():
        best = measure_linear_routes(rows=8, width=8, seconds=0)
    assert set(best) == {"linear", "conv1x1"} and all(seconds > 0 for seconds in best.values())
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()
    assert torch.get_num_threads() == threads


def test_around_sees_every_layer_and_may_replace_its_output():
    x, weight, bias = torch.randn(4, 3), torch.randn(2, 3), torch.randn(2)
    seen = []

    def outer(compute, x, weight, bias):
        seen.append("outer")
        return compute(x, weight, bias) + 1

    def inner(compute, x, w, b):
        seen.append("inner")
        assert w is weight and b is bias
        return 2 * compute(x, w, b)

    plain = linear(x, weight, bias)
    with around_linear(outer), around_linear(inner):
        assert torch.equal(linear(x, weight, bias), 2 * (plain + 1))
    assert seen == ["inner", "outer"]
    assert torch.equal(linear(x, weight, bias), plain)
