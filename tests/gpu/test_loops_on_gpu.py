"""Training, calibration, learned merges and linearized models on a GPU give what they give on the processor."""

import dataclasses

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.models import random_head
from tests.loops.tiny import SIZE, digits, vit
from tests.tangent import models as tangent_models

SHORT = FinetuneConfig(steps=6, batch_size=16, lr=1e-3, warmup=2, device="cpu")
ON_GPU = dataclasses.replace(SHORT, device="cuda")


def _head():
    return random_head(16, 10, seed=0)


def _batches():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, SIZE, SIZE, generator=g) for _ in range(2)]


def _masks(density=0.3):
    g = torch.Generator().manual_seed(0)
    weights = dict(vit().named_parameters())
    return ta.Masks.pack({n: torch.rand(p.shape, generator=g) < density for n, p in weights.items()})


def _assert_near(ours, theirs, tolerance=2e-4):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name].detach().cpu(), expected.detach(), rtol=1e-3, atol=tolerance, msg=name)


@pytest.mark.parametrize("recipe", ["full", "qkvo", "bitfit"])
def test_dense_recipes(recipe):
    here = finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, recipe=recipe))
    there = finetune(vit(), _head(), digits(), dataclasses.replace(ON_GPU, recipe=recipe))
    _assert_near(there.state, here.state)


@pytest.mark.parametrize("options", [{}, {"clip_over": "selected"}], ids=str)
def test_sparse_recipe(options):
    config = {"recipe": "talos", **options}
    here = finetune(vit(), _head(), digits(), dataclasses.replace(SHORT, **config), masks=_masks())
    there = finetune(vit(), _head(), digits(), dataclasses.replace(ON_GPU, **config), masks=_masks())
    _assert_near(there.state, here.state)
    before = vit().state_dict()
    for name, mask in _masks().items():
        assert torch.equal(there.state[name].cpu()[~mask], before[name][~mask]), name


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_optimizers(kind, dtype):
    make, options = {"adamw": (ta.SparseAdamW, {}), "sgd": (ta.SparseSGD, {"momentum": 0.9})}[kind]
    states = []
    for device in ("cpu", "cuda"):
        model = vit().to(device, dtype)
        optimizer = make(model.named_parameters(), _masks(), lr=1e-2, weight_decay=0.1, **options)
        for step in range(5):
            g = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=g).to(device, dtype)
            optimizer.clip_grad_norm_(1.0)
            optimizer.step()
        states.append(model.state_dict())
    _assert_near(states[1], states[0], 1e-5 if dtype == torch.float32 else 2e-2)


def test_calibration_chooses_the_same_weights():
    here = ta.calibrate(vit(), _batches(), head=_head(), density=0.1, rounds=2, labels="exact")
    there = ta.calibrate(
        vit().cuda(), [x.cuda() for x in _batches()], head=_head().cuda(), density=0.1, rounds=2, labels="exact"
    )
    a, b = (torch.cat([m.cpu().reshape(-1) for m in masks.values()]) for masks in (here, there))
    assert a.sum() == b.sum() and (a & b).sum() >= 0.98 * a.sum()


def test_fisher_diagonal():
    here = ta.fisher_diagonal(vit(), _batches(), head=_head(), labels="exact")
    there = ta.fisher_diagonal(vit().cuda(), [x.cuda() for x in _batches()], head=_head().cuda(), labels="exact")
    for name, expected in here.items():
        torch.testing.assert_close(there[name].cpu(), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("name", tangent_models.NAMES)
def test_linearized_models(name):
    outputs = []
    for device in ("cpu", "cuda"):
        model, images = tangent_models.encoder(name).to(device), tangent_models.images().to(device)
        lin = ta.linearize(model)
        g = torch.Generator().manual_seed(5)
        lin.load_tau({n: (1e-2 * torch.randn(p.shape, generator=g)).to(device) for n, p in model.named_parameters()})
        y = tangent_models.features(lin(images))
        y.square().sum().backward()
        grads = {n: p.grad.cpu() for n, p in lin.named_tau() if p.grad is not None}
        outputs.append((y.detach().cpu(), grads))
    torch.testing.assert_close(outputs[1][0], outputs[0][0], rtol=1e-3, atol=1e-4)
    assert outputs[0][1].keys() == outputs[1][1].keys()
    largest = max(
        float(g.abs().max()) for g in outputs[0][1].values()
    )  # the gradient of a key bias is 0 but for rounding
    for n, expected in outputs[0][1].items():
        torch.testing.assert_close(outputs[1][1][n], expected, rtol=2e-3, atol=1e-4 * largest)


def test_tangent_features():
    results = []
    for device in ("cpu", "cuda"):
        model = tangent_models.encoder(tangent_models.NAMES[0]).to(device)
        taus = [{n: torch.full_like(p, 1e-3 * (t + 1)) for n, p in model.named_parameters()} for t in range(3)]
        features = ta.TangentFeatures(model, tangent_models.images().to(device), taus)
        results.append(features.at([[0.1, 0.2, 0.3]]).cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_adamerge():
    g = torch.Generator().manual_seed(0)
    base = vit().state_dict()
    finetuned = [{n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in base.items()} for _ in range(2)]
    coefficients = []
    for device in ("cpu", "cuda"):
        to = lambda state, device=device: {n: t.to(device) for n, t in state.items()}  # noqa: E731
        heads = {name: random_head(16, 5, seed=i).to(device) for i, name in enumerate("ab")}
        loaders = {name: [x.to(device) for x in _batches()] for name in "ab"}
        result = ta.adamerge(vit().to(device), to(base), [to(f) for f in finetuned], heads, loaders, steps=4, lr=2e-2)
        coefficients.append(result.coefficients.cpu())
    torch.testing.assert_close(coefficients[1], coefficients[0], rtol=1e-3, atol=1e-3)
