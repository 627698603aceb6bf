"""Compact gradients are the selected entries of the dense ones, and nothing dense is made on the way."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from taskarith_fast.errors import ArgumentError
from taskarith_fast.masks import Masks
from taskarith_fast.models import VisionTransformer, VitConfig
from taskarith_fast.models.compact import compact_gradients
from taskarith_fast.ops.linear import linear_route
from taskarith_fast.optim import SparseAdamW

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _ours():
    return VisionTransformer(VitConfig(image_size=16, patch_size=4, position_grid=3, width=36, depth=2, heads=3))


def _open_clip():
    from open_clip.transformer import VisionTransformer as OpenClip

    return OpenClip(image_size=16, patch_size=8, width=40, layers=2, heads=2, mlp_ratio=2.0, output_dim=8)


def _mlp():
    return nn.Sequential(nn.Flatten(2), nn.Linear(256, 33), nn.ReLU(inplace=True), nn.Linear(33, 5))


MODELS = {"ours": _ours, "open_clip": _open_clip, "mlp": _mlp}


def _model(kind):
    torch.manual_seed(1)
    return MODELS[kind]()


def _masks(model, density=0.3):
    torch.manual_seed(2)
    return {name: torch.rand(p.shape) < density for name, p in model.named_parameters()}


def _backward(model, images=IMAGES):
    model(images).float().square().sum().backward()


def _dense(model):
    """Gradients of one ordinary pass, by name."""
    _backward(model)
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return grads


def _compact(model):
    found = {name: getattr(p, "compact_grad", None) for name, p in model.named_parameters()}
    return {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("route", ["linear", "conv1x1"])
@pytest.mark.parametrize("kind", MODELS)
def test_compact_gradients_are_the_selected_entries_of_the_dense_ones(kind, route):
    model = _model(kind)
    masks = _masks(model)
    with linear_route(route):
        dense = _dense(model)
        with compact_gradients(model, masks):
            _backward(model)
    for name, grad in _compact(model).items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(
            grad, dense[name][masks[name]], rtol=1e-4, atol=1e-5 * float(dense[name].abs().max())
        )
        assert model.get_parameter(name).grad is None
    for name, parameter in model.named_parameters():
        if name not in _compact(model):
            torch.testing.assert_close(parameter.grad, dense[name], rtol=1e-4, atol=1e-4)


def test_every_dense_layer_of_a_transformer_is_covered():
    expected = {
        "ours": ("conv1.weight", "attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
        "open_clip": ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
    }
    for kind, endings in expected.items():
        model = _model(kind)
        with compact_gradients(model, _masks(model)):
            _backward(model)
        names = [name for name, _ in model.named_parameters() if name.endswith(endings)]
        assert sorted(_compact(model)) == sorted(names)


def test_gradients_add_up_over_passes_and_over_uses_of_one_weight():
    layer = nn.Linear(8, 8)
    masks = _masks(layer)
    x = torch.randn(5, 8)

    def twice():
        layer(layer(x)).sum().backward()

    twice()
    dense, _ = layer.weight.grad, layer.zero_grad()
    with compact_gradients(layer, masks):
        twice()
        torch.testing.assert_close(layer.weight.compact_grad, dense[masks["weight"]])
        twice()
    torch.testing.assert_close(layer.weight.compact_grad, 2 * dense[masks["weight"]])


def test_a_weight_without_a_selected_entry_gets_no_gradient():
    model = _model("mlp")
    masks = {"1.weight": torch.zeros(33, 256, dtype=torch.bool), "3.weight": torch.ones(5, 33, dtype=torch.bool)}
    dense = _dense(model)
    with compact_gradients(model, Masks.pack(masks)):
        _backward(model)
    assert model[1].weight.grad is None and not hasattr(model[1].weight, "compact_grad")
    torch.testing.assert_close(model[1].bias.grad, dense["1.bias"])
    torch.testing.assert_close(model[3].weight.compact_grad, dense["3.weight"].flatten())


class _Sizes(TorchDispatchMode):
    """Elements of every float tensor that an operator allocates."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        new = [t for t in (out if isinstance(out, (list, tuple)) else [out]) if isinstance(t, torch.Tensor)]
        self.seen |= {t.numel() for t in new if t.is_floating_point() and not func.is_view}
        return out


def test_no_tensor_of_the_weights_size_is_made_in_the_backward_pass():
    model, numel = _model("mlp"), 33 * 256
    loss = model(IMAGES).sum()
    with _Sizes() as dense:
        loss.backward()
    with compact_gradients(model, _masks(model)):
        loss = model(IMAGES).sum()
        with _Sizes() as compact:
            loss.backward()
    assert numel in dense.seen and numel not in compact.seen


def test_bfloat16_autocast_gives_float32_sums_of_the_rounded_factors():
    layer = nn.Linear(40, 24)
    masks, x, cotangent = _masks(layer), torch.randn(50, 40), torch.randn(50, 24)
    with compact_gradients(layer, masks), torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        (y.float() * cotangent).sum().backward()
    exact = cotangent.bfloat16().double().t() @ x.bfloat16().double()
    torch.testing.assert_close(layer.weight.compact_grad, exact[masks["weight"]].float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant):
    model, seen = _model("mlp"), []
    masks = _masks(model)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        with compact_gradients(model, masks, on_gradient=seen.append):
            run(IMAGES.clone().requires_grad_()).sum().backward()
        found.append([model[i].weight.__dict__.pop("compact_grad") for i in (1, 3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(seen) == 4


def test_the_callback_comes_once_a_pass_when_the_gradient_is_complete():
    first, shared = nn.Linear(6, 6), nn.Linear(6, 6)
    model = nn.Sequential(first, shared, shared)
    masks, dense = _masks(model), None
    model(torch.ones(4, 6)).square().sum().backward()
    dense = {p: p.grad[masks[name]] for name, p in model.named_parameters()}
    seen = []

    def step(parameter):
        torch.testing.assert_close(parameter.compact_grad, dense[parameter])
        parameter.compact_grad = None
        seen.append(parameter)

    model.zero_grad()
    with compact_gradients(model, masks, on_gradient=step):
        for _ in range(2):
            model(torch.ones(4, 6)).square().sum().backward()
    assert [id(p) for p in seen] == [id(shared.weight), id(first.weight)] * 2


def test_a_weight_used_outside_dense_layers_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4))
    with compact_gradients(model, _masks(model)):
        loss = (model(torch.ones(2, 4)) @ model[0].weight).sum()
        with pytest.raises(ArgumentError, match=r"0\.weight is used outside dense layers too"):
            loss.backward()


def test_frozen_weights_evaluation_and_other_types_are_left_alone():
    model = _model("mlp")
    model[1].weight.requires_grad_(False)
    with compact_gradients(model, _masks(model)):
        with torch.no_grad():
            assert not model(IMAGES).requires_grad
        _backward(model)
    assert model[1].weight.grad is None and list(_compact(model)) == ["3.weight"]
    double = _model("mlp").double()
    with compact_gradients(double, _masks(double)):
        _backward(double, IMAGES.double())
    assert double[1].weight.grad is not None and not _compact(double)


def test_after_the_block_layers_and_gradients_are_as_before():
    model = _model("open_clip")
    before = [type(module) for module in model.modules()]
    with pytest.raises(RuntimeError, match="stop"), compact_gradients(model, _masks(model)):
        raise RuntimeError("stop")
    assert [type(module) for module in model.modules()] == before
    _backward(model)
    assert not _compact(model) and all(p.grad is not None for p in model.parameters())


def test_masks_that_do_not_fit_are_refused():
    model = _model("mlp")
    with pytest.raises(ArgumentError, match=r"head\.weight: the mask fits no parameter"):
        compact_gradients(model, {"head.weight": torch.ones(2, 2, dtype=torch.bool)}).__enter__()
    with pytest.raises(ArgumentError, match=r"1\.weight: the mask must have shape \[33, 256\], got \[256, 33\]"):
        compact_gradients(model, {"1.weight": torch.ones(256, 33, dtype=torch.bool)}).__enter__()
    with pytest.raises(ArgumentError, match=r"1\.weight: a mask must be bool"):
        compact_gradients(model, {"1.weight": torch.ones(33, 256)}).__enter__()


def test_the_sparse_optimizer_takes_compact_gradients_as_it_takes_dense_ones():
    trained = []
    for around in (lambda model, masks: nullcontext(), compact_gradients):
        model = _model("mlp")
        masks = Masks.pack(_masks(model))
        optimizer = SparseAdamW(model.named_parameters(), masks=masks, lr=1e-2)
        with around(model, masks):
            for _ in range(3):
                _backward(model)
                optimizer.clip_grad_norm_(1.0)
                optimizer.step()
                optimizer.zero_grad()
        assert not _compact(model)
        trained.append(model.state_dict())
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, rtol=1e-4, atol=1e-4)
    assert not torch.equal(trained[0]["1.weight"], _model("mlp").state_dict()["1.weight"])


def test_weights_are_stepped_in_the_backward_pass_and_their_compact_gradients_freed():
    trained = []
    for at_once in (False, True):
        model = _model("mlp")
        masks = Masks.pack(_masks(model))
        optimizer = SparseAdamW(model.named_parameters(), masks=masks, lr=1e-2)
        if at_once:
            optimizer.step_in_backward()
        with compact_gradients(model, masks, on_gradient=optimizer.step_parameter if at_once else None):
            for _ in range(3):
                _backward(model)
                assert bool(_compact(model)) != at_once
                optimizer.step()
                optimizer.zero_grad()
        trained.append(model.state_dict())
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items())


def test_stepping_a_parameter_outside_the_backward_pass_is_refused():
    model = _model("mlp")
    optimizer = SparseAdamW(model.named_parameters(), masks=Masks.pack(_masks(model)), lr=1e-2)
    with pytest.raises(ArgumentError, match="step_parameter belongs to the backward pass"):
        optimizer.step_parameter(next(model.parameters()))
