"""Our vision transformer against one written with stock torch modules, and its behaviour at the edges."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models import VisionTransformer, VitConfig
from taskarith_fast.ops.linear import linear_route

SMALL = VitConfig(image_size=28, patch_size=7, position_grid=5, width=24, depth=2, heads=3)


def _small(**changes):
    torch.manual_seed(0)
    config = VitConfig(**{**vars(SMALL), **changes})
    model = VisionTransformer(config)
    with torch.no_grad():  # biases, norms and scales away from their neutral values
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _stock_features(model, images):
    """The same mathematics by stock convolution, attention and norms; patch mean after the final norm."""
    w = dict(model.named_parameters())
    config = model.config
    x = F.conv2d(images, w["conv1.weight"], w["conv1.bias"], stride=config.patch_size)
    rows, columns = x.shape[2:]
    grid = w["positional_embedding"][1:].unflatten(0, (config.position_grid,) * 2).permute(2, 0, 1)[None]
    x = x + F.interpolate(grid, size=(rows, columns), mode="bicubic")
    cls = (w["class_embedding"] + w["positional_embedding"][0]).expand(len(images), 1, -1)
    x = torch.cat([cls, x.flatten(2).transpose(1, 2)], dim=1)
    for i in range(config.depth):
        p = {k.removeprefix(f"transformer.resblocks.{i}."): v for k, v in w.items()}
        attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True, dtype=x.dtype)
        attention.load_state_dict({k.removeprefix("attn."): v for k, v in p.items() if k.startswith("attn.")})
        h = F.layer_norm(x, x.shape[-1:], p["ln_1.weight"], p["ln_1.bias"], config.norm_eps)
        x = x + p["ls_1.gamma"] * attention(h, h, h, need_weights=False)[0]
        h = F.layer_norm(x, x.shape[-1:], p["ln_2.weight"], p["ln_2.bias"], config.norm_eps)
        h = F.linear(F.gelu(F.linear(h, p["mlp.c_fc.weight"], p["mlp.c_fc.bias"])), p["mlp.c_proj.weight"])
        x = x + p["ls_2.gamma"] * (h + p["mlp.c_proj.bias"])
    x = F.layer_norm(x, x.shape[-1:], w["ln_post.weight"], w["ln_post.bias"], config.norm_eps)
    return x[:, 1:].mean(dim=1)


@pytest.mark.parametrize("size", [(28, 28), (35, 35), (14, 42)], ids=["interpolated", "own_grid", "oblong"])
@pytest.mark.parametrize("route", ["linear", "conv1x1"])
def test_features_equal_stock_torchs(size, route):
    model = _small()
    images = torch.randn(3, 3, *size)
    with linear_route(route), torch.no_grad():
        features = model(images)
        truth = _stock_features(model.double(), images.double())
    assert features.shape == (3, model.feature_dim)
    torch.testing.assert_close(features.double(), truth, rtol=1e-5, atol=1e-5)


def test_gradients_of_both_routes_agree_and_reach_every_parameter():
    model, images = _small(), torch.randn(8, 3, 28, 28)
    gradients = []
    for route in ("linear", "conv1x1"):
        model.zero_grad()
        with linear_route(route):
            model(images).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_names_follow_open_clip_and_no_shape_depends_on_the_image():
    names = list(_small().state_dict())
    assert names[:4] == ["class_embedding", "positional_embedding", "conv1.weight", "conv1.bias"]
    assert "transformer.resblocks.1.attn.in_proj_weight" in names and "ln_post.weight" in names
    shapes = [{k: v.shape for k, v in _small(image_size=size).state_dict().items()} for size in (14, 28)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("pooling, factor", [("patch_mean", 1), ("cls", 1), ("cls_patch_mean", 2)])
def test_poolings_have_the_size_they_say(pooling, factor):
    model = _small(pooling=pooling)
    features = model(torch.randn(2, 3, 28, 28))
    assert features.shape == (2, 24 * factor) and model.feature_dim == 24 * factor


def test_poolings_read_the_tokens_they_name():
    images = torch.randn(2, 3, 28, 28)
    both, mean, cls = (_small(pooling=p)(images) for p in ("cls_patch_mean", "patch_mean", "cls"))
    assert torch.equal(both, torch.cat([cls, mean], dim=1))


def test_a_model_without_final_norm_or_layer_scale_has_no_such_parameters():
    names = "".join(_small(final_norm=False, layer_scale=None).state_dict())
    assert "ln_post" not in names and "gamma" not in names


def test_an_empty_batch_gives_no_features():
    assert _small()(torch.empty(0, 3, 28, 28)).shape == (0, 24)


def test_the_model_compiles_to_one_graph():
    model, images = _small().eval(), torch.randn(2, 3, 28, 28)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))


def test_forward_mode_runs_on_the_math_attention():
    model, images = _small(), torch.randn(2, 3, 28, 28)
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    tangents = {k: torch.randn_like(v) for k, v in parameters.items()}

    def features(parameters):
        return torch.func.functional_call(model, parameters, (images,))

    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        value, tangent = torch.func.jvp(features, (parameters,), (tangents,))
    torch.testing.assert_close(value, model(images), rtol=1e-4, atol=1e-5)
    assert tangent.abs().max() > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_size": 30}, "image_size must be a multiple of the patch size 7, got 30; try 28"),
        ({"image_size": 0}, "image_size must be a multiple of the patch size 7, got 0; try 7"),
        ({"heads": 5}, "width must be a multiple of heads=5, got 24"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"pooling": "max"}, "pooling must be one of patch_mean, cls, cls_patch_mean, got 'max'"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        VitConfig(**{**vars(SMALL), **change})


@pytest.mark.parametrize("shape", [(2, 3, 28, 30), (2, 1, 28, 28), (3, 28, 28)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ArgumentError, match=r"images must have shape \[B, 3, H, W\] .* multiples of 7, got"):
        _small()(torch.zeros(shape))
