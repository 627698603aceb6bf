"""Gram matrices against the inputs that hooks see, for the models of every library."""

import pytest
import torch
from torch import nn

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.fast import fast_linear
from tests.loops.tiny import SIZE, vit


def _images(count=6, size=SIZE):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _inputs_by_hooks(model, batches):
    """Weight of every nn.Linear that calls forward -> its inputs, float64 [n, k]."""
    seen, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def hook(module, args, name=f"{name}.weight"):
                seen.setdefault(name, []).append(args[0].detach().reshape(-1, args[0].shape[-1]).double())

            hooks.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _assert_is_gram(gram, x, batches=3):
    truth, magnitude = x.T @ x / len(x), x.abs().T @ x.abs() / len(x)
    assert gram.shape == truth.shape and not gram.is_inference()
    assert bool(((gram.double() - truth).abs() <= (len(x) + 4 * batches) * 2.0**-24 * magnitude).all())
    assert torch.equal(gram, gram.T) or torch.allclose(gram, gram.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["ours", "timm", "hf"])
def test_every_dense_layer_has_the_gram_of_its_inputs(kind):
    torch.manual_seed(0)
    if kind == "ours":
        model = vit().eval()
    elif kind == "timm":
        timm = pytest.importorskip("timm")
        model = timm.models.VisionTransformer(SIZE, 4, embed_dim=24, depth=2, num_heads=2, num_classes=3).eval()
    else:
        transformers = pytest.importorskip("transformers")
        shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        model = transformers.ViTModel(transformers.ViTConfig(**shape, image_size=SIZE, patch_size=4)).eval()
    batches = list(_images().split([3, 2, 1]))
    inputs = _inputs_by_hooks(model, batches)
    grams = ta.gram_matrices(model, batches)
    assert len(inputs) > 5 and inputs.keys() <= grams.keys()
    for name, x in inputs.items():
        _assert_is_gram(grams[name], x)
    parameters = [name for name, _ in model.named_parameters()]
    assert list(grams) == sorted(grams, key=parameters.index)
    extra = {"conv1.weight", *(f"transformer.resblocks.{i}.attn.in_proj_weight" for i in (0, 1))}
    assert grams.keys() - inputs.keys() == (extra if kind == "ours" else set())


def test_attention_of_open_clip_is_covered():
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    tower = open_clip.transformer.VisionTransformer(SIZE, 4, 24, 2, 2, 2.0, output_dim=8).eval()
    batches = list(_images().split(2))
    normalised, heads = {}, {}
    for i, block in enumerate(tower.transformer.resblocks):
        block.ln_1.register_forward_hook(lambda m, a, y, i=i: normalised.setdefault(i, []).append(y.detach().double()))
        block.attn.register_forward_hook(lambda m, a, y, i=i: heads.setdefault(i, []).append(y[0].detach().double()))
    kinds = [type(module) for module in tower.modules()]
    grams = ta.gram_matrices(tower, batches)
    assert [type(module) for module in tower.modules()] == kinds
    names = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert list(grams) == [f"transformer.resblocks.{i}.{name}" for i in (0, 1) for name in names]
    for i, block in enumerate(tower.transformer.resblocks):
        _assert_is_gram(grams[f"transformer.resblocks.{i}.attn.in_proj_weight"], torch.cat(normalised[i]).flatten(0, 1))
        out = block.attn.out_proj
        y = torch.cat(heads[i]).flatten(0, 1) - out.bias.detach().double()
        x = y @ torch.linalg.inv(out.weight.detach().double()).T  # what out_proj was given
        gram = grams[f"transformer.resblocks.{i}.attn.out_proj.weight"].double()
        torch.testing.assert_close(gram, x.T @ x / len(x), rtol=1e-3, atol=1e-5)


def test_the_patch_embedding_of_ours_has_that_of_its_patches():
    images = _images(4)
    gram = ta.gram_matrices(vit(), [images], names=["conv1.weight"])
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48).double()
    assert list(gram) == ["conv1.weight"]
    _assert_is_gram(gram["conv1.weight"], patches, batches=1)


def test_wide_layers_are_cut_into_columns_and_mirrored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 2))
    x = torch.randn(50, 600)
    gram = ta.gram_matrices(model, x.split(20))["0.weight"]
    _assert_is_gram(gram, x.double())
    exact = ta.gram_matrices(model, x.split(20), dtype=torch.float64)["0.weight"]
    torch.testing.assert_close(exact, x.double().T @ x.double() / 50, rtol=1e-12, atol=1e-14)


def test_the_model_is_left_as_it_was_even_by_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    kinds, before = [type(m) for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        ta.gram_matrices(model, [torch.ones(2, 3), torch.ones(2, 4)])
    first, second = (ta.gram_matrices(model, [(torch.ones(2, 3), torch.zeros(2))]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)  # dropout is off
    assert model.training and [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(v, before[k]) and not v.is_inference() for k, v in model.state_dict().items())
    with fast_linear(model):
        assert type(model[0]) is not nn.Linear and model[0](torch.ones(1, 3)).requires_grad


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "batches must hold at least one batch, got none"),
        (
            [torch.ones(1, 3)],
            {"names": ["0.bias"]},
            "names must be weights .* got 0.bias; seen: none",
        ),
        ([torch.ones(1, 3)], {"dtype": torch.bfloat16}, "dtype must be torch.float32 or torch.float64"),
    ],
)
def test_bad_arguments_are_named(batches, options, message):
    with pytest.raises(ArgumentError, match=message):
        ta.gram_matrices(nn.Sequential(nn.Linear(3, 2)), batches, **options)


def test_regmean_of_a_model_and_its_grams_keeps_each_tasks_outputs_better_than_the_average():
    models = [vit(seed) for seed in (1, 2)]
    base = {k: (models[0].state_dict()[k] + models[1].state_dict()[k]) / 2 for k in models[0].state_dict()}
    tasks = [_images(4), _images(4).flip(3) * 2 + 1]
    grams = [ta.gram_matrices(model, [images]) for model, images in zip(models, tasks, strict=True)]
    merged = ta.merge(base, [model.state_dict() for model in models], "regmean", grams=grams, off_diagonal=1.0)
    name, errors = "conv1.weight", []
    for state in (merged, base):
        error = 0.0
        for model, images in zip(models, tasks, strict=True):
            x = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48)
            error += float((x @ (state[name] - model.state_dict()[name]).flatten(1).T).square().mean())
        errors.append(error)
    assert errors[0] < 0.9 * errors[1]
