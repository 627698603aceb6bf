"""The observed passes: what it tells, what it refuses, and that the model is handed back as it was."""

import copy

import pytest
import torch
from torch import nn

from taskarith_fast.capture import observe
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.fisher import Squares
from tests.capture.by_the_book import assert_close, squares
from tests.models.tiny import FAMILIES, tiny_encoder


def _observed(model, images, **options):
    found = Squares(dict(model.named_parameters()))
    with observe(model, found, **options) as capture:
        output = capture.forward(images)
        capture.backward(output, _weights(output[0]).expand_as(output))
    return found.fisher


def _weights(y):
    """Uneven: the sum of what a LayerNorm gives hardly depends on its input."""
    return torch.linspace(-1, 2, y.numel()).view(y.shape)


def _value(y, b):
    return (y * _weights(y)).sum()


def _images(model, count=3, size=None):
    side = size or model.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", [*FAMILIES, "vit_mae"])
def test_every_parameter_of_every_family_is_told_its_per_sample_gradients(family, checkpoint):
    torch.manual_seed(0)
    model = tiny_encoder(family)
    images = _images(model)
    truth = squares(model, images, _value)
    assert_close(_observed(model, images, checkpoint=checkpoint), truth)


@pytest.mark.parametrize(("family", "size"), [("ours", 20), ("vit", 48), ("dinov2", 48), ("clip_vision_model", 40)])
def test_interpolated_position_embeddings_get_the_transposed_interpolation(family, size):
    torch.manual_seed(1)
    model = tiny_encoder(family)
    images = _images(model, size=size)
    assert_close(_observed(model, images), squares(model, images, _value))


@pytest.mark.parametrize(
    "options",
    [
        {"no_embed_class": True},
        {"reg_tokens": 2, "init_values": 0.5},
        {"dynamic_img_size": True, "qk_norm": True, "pre_norm": True},
        {"class_token": False, "global_pool": "avg", "num_classes": 4},
    ],
)
def test_timms_variants_are_understood(options):
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 0}
    model = timm.models.VisionTransformer(**(shape | options))
    images = _images(model, size=24 if "dynamic_img_size" in options else 16)
    assert_close(_observed(model, images), squares(model, images, _value))


def test_plain_models_of_other_libraries_are_left_as_they_were():
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(3)
    model = open_clip.transformer.VisionTransformer(16, 8, 24, 1, 3, 2.0, output_dim=12, ls_init_value=0.3)
    model.transformer.resblocks[0].mlp.eval()
    model.conv1.weight.requires_grad_(False)
    twin = copy.deepcopy(model)
    before = [(m, type(m), m.training, dict(m._parameters), m.__dict__.get("forward")) for m in model.modules()]
    images = _images(model, size=16)
    fisher = _observed(model, images, checkpoint=True)
    for module, kind, training, parameters, forward in before:
        assert type(module) is kind and module.training == training and module.__dict__.get("forward") == forward
        assert all(module._parameters[name] is p for name, p in parameters.items())
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.requires_grad == theirs.requires_grad and ours.grad is None
    twin.requires_grad_()
    assert_close(fisher, squares(twin, images, _value))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_leaves_the_model_as_it_was(error):
    model = tiny_encoder("timm").train()
    parameters = dict(model.named_parameters())
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(error), observe(model, Squares(parameters), checkpoint=True) as capture:
        capture.forward(_images(model))
        assert next(model.parameters()) is not next(iter(parameters.values()))
        raise error
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert kinds == [type(m) for m in model.modules()] and all(m.training for m in model.modules())
    assert not any("forward" in m.__dict__ for m in model.modules())
    torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))  # nothing stands around functions any more


def test_other_values_may_stand_in_for_the_parameters():
    torch.manual_seed(4)
    model = tiny_encoder("ours")
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled.conv1.weight.mul_(2)
    images = _images(model)
    fisher = _observed(model, images, tensors={"conv1.weight": doubled.conv1.weight})
    assert_close(fisher, squares(doubled, images, _value))


def test_only_the_named_parameters_are_told():
    model = tiny_encoder("ours")
    names = ["transformer.resblocks.1.mlp.c_fc.bias", "class_embedding"]
    fisher = _observed(model, _images(model), names=names)
    told = {name for name, f in fisher.items() if f.any()}
    assert told == set(names)


def test_the_whole_batch_as_one_sample_gives_the_square_of_the_summed_gradient():
    torch.manual_seed(5)
    model = tiny_encoder("dinov2")
    images = _images(model)
    output = model.eval()(images)
    (output * _weights(output[0])).sum().backward()
    gradients = {n: p.new_zeros(p.shape) if p.grad is None else p.grad for n, p in model.named_parameters()}
    truth = {name: gradient.double() ** 2 for name, gradient in gradients.items()}
    assert_close(_observed(model, images, whole_batch=True), truth)


def test_recomputed_blocks_keep_less():
    model = tiny_encoder("vit")
    kept = {}
    for checkpoint in (False, True):
        found: dict[int, int] = {}

        def keep(tensor, found=found):
            found[tensor.data_ptr()] = tensor.numel()
            return tensor

        with observe(model, Squares(dict(model.named_parameters())), checkpoint=checkpoint) as capture:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = capture.forward(_images(model))
            capture.backward(output, torch.ones_like(output))
        kept[checkpoint] = sum(found.values())
    assert kept[True] < 0.6 * kept[False]


class _Odd(nn.Module):
    """A layer with a parameter, and one that is used in some way."""

    def __init__(self, use, size=4):
        super().__init__()
        self.first, self.weight, self.use = nn.Linear(3, 4), nn.Parameter(torch.randn(size, 4)), use

    def forward(self, x):
        return self.use(self.first(x.mean(dim=(2, 3))), self.weight)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x, w: torch.einsum("bk,ok->bo", x, w), "weight: no rule gives .* where it is used in einsum; leave it"),
        (lambda x, w: x, "weight: no rule gives its per-sample gradient, or the model does not use it"),
        (lambda x, w: (x[None] @ w)[0], "weight: its input must have the batch of 3 first, got"),
    ],
)
def test_what_cannot_be_observed_is_named(use, message):
    model = _Odd(use)
    model.image_size = 8
    with pytest.raises(ArgumentError, match=message):
        _observed(model, _images(model))
    assert _observed(model, _images(model), names=["first.weight"])["first.weight"].any()


_LINEAR = torch.nn.functional.linear


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x, w: _LINEAR(x, w) + torch.einsum("bk,ok->bo", x, w), "used in einsum"),
        (lambda x, w: _LINEAR(x, w) + _LINEAR(x, w * 2), "used in mul"),
        (lambda x, w: _LINEAR(x, w) + _LINEAR(x, w.flip(0)), "used in flip"),
        (lambda x, w: _LINEAR(x, w) + _LINEAR(x, w.t()), "used in part"),
        (lambda x, w: _LINEAR(x, w) + _LINEAR(x, w[:1]), "used in part"),
        (lambda x, w: _LINEAR(x, w) + torch.stack([w, w]).sum(), "used in stack"),
        (lambda x, w: _LINEAR(x, w) + _LINEAR(w[1:], w.detach()), "used as an input"),
    ],
)
def test_a_parameter_that_is_seen_in_one_of_its_uses_only_is_refused(use, message):
    """Its gradient would be a part of the whole, silently."""
    model = _Odd(use)
    model.image_size = 8
    with pytest.raises(ArgumentError, match=f"^weight: no rule gives its per-sample gradient where it is {message}"):
        _observed(model, _images(model))
    observed = _observed(model, _images(model), names=["first.weight"])
    assert_close({"first.weight": observed["first.weight"]}, {"first.weight": _truth(model)["first.weight"]})


@pytest.mark.parametrize(
    "use",
    [
        lambda x, w: x @ w.t() + torch.matmul(x, w),
        lambda x, w: _LINEAR(x, w) + x.matmul(w.T),
        lambda x, w: _LINEAR(x.to(w), w.view(4, 4)) + torch.zeros_like(w)[0] + w.new_ones(4),
        lambda x, w: _LINEAR(x, w) if w.shape[0] == 4 and w.dtype == torch.float32 else x,
    ],
)
def test_views_transposes_and_shapes_are_no_uses_of_their_own(use):
    model = _Odd(use)
    model.image_size = 8
    assert_close(_observed(model, _images(model)), _truth(model))


def _truth(model):
    return squares(model, _images(model), _value)


def test_an_unknown_name_is_refused():
    model = tiny_encoder("ours")
    with pytest.raises(ArgumentError, match="names: nothing is no parameter of the model; expected names as class_emb"):
        _observed(model, _images(model), names=["nothing"])
