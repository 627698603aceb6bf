"""Frozen-A low-rank adaptation: what is adapted, and that it equals the merged weight."""

import copy

import pytest
import torch
from torch import nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.models.lora import AdaptedTangent, LowRankAdapter, low_rank_targets
from tests.loops.tiny import vit
from tests.models.tiny import FAMILIES, tiny_encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapted_model_gives_what_its_merged_weights_give(family):
    torch.manual_seed(0)
    model = tiny_encoder(family).eval()
    plain = copy.deepcopy(model)
    images = torch.randn(3, 3, model.image_size, model.image_size)
    adapter = LowRankAdapter(model, rank=4, scale=2.0)
    before = plain(images)
    with adapter.applied():
        torch.testing.assert_close(model(images), before)
    for b in adapter.b:
        nn.init.normal_(b, std=0.1)
    with adapter.applied():
        adapted = model(images)
    adapter.check_seen()
    assert not torch.allclose(adapted, before, atol=1e-3)
    plain.load_state_dict(adapter.merged(plain.state_dict()))
    torch.testing.assert_close(plain(images), adapted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(images), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["ours", "vit"])
def test_gradients_of_b_are_those_of_the_merged_weight(family):
    torch.manual_seed(0)
    model = tiny_encoder(family).eval()
    images = torch.randn(3, 3, model.image_size, model.image_size)
    model.requires_grad_(False)
    adapter = LowRankAdapter(model, rank=3, scale=5.0)
    with adapter.applied():
        model(images).square().sum().backward()
    weights = dict(model.named_parameters())
    for name in adapter.names:
        weights[name].requires_grad_()
    model(images).square().sum().backward()
    for target, a, b in zip(adapter.targets, adapter.a, adapter.b, strict=True):
        truth = 5.0 * weights[target.name].grad[target.start : target.stop] @ a.T
        torch.testing.assert_close(b.grad, truth, atol=1e-4, rtol=1e-3)
        assert a.grad is None


def test_query_and_value_rows_are_adapted_and_keys_are_not():
    fused = low_rank_targets(vit())
    assert [(t.start, t.stop) for t in fused] == [(0, 16), (32, 48)] * 2 and all(t.fused for t in fused)
    assert {t.name for t in fused} == {f"transformer.resblocks.{i}.attn.in_proj_weight" for i in range(2)}
    separate = low_rank_targets(tiny_encoder("clip_vision_model"))
    assert len(separate) == 4 and not any(t.fused or "k_proj" in t.name for t in separate)
    assert all((t.start, t.stop) == (0, 24) for t in separate)


def test_the_frozen_factor_is_xavier_uniform_over_the_root_of_the_rank():
    adapter = LowRankAdapter(vit(), rank=4, seed=7)
    bound = (6 / (16 + 4)) ** 0.5 / 2
    assert all(0.9 * bound < float(a.abs().max()) <= bound for a in adapter.a)
    same, other = LowRankAdapter(vit(), rank=4, seed=7), LowRankAdapter(vit(), rank=4, seed=8)
    assert torch.equal(adapter.a[3], same.a[3]) and not torch.equal(adapter.a[3], other.a[3])
    assert not torch.equal(adapter.a[0], adapter.a[1])


def test_merging_leaves_the_state_handed_in_and_the_keys_alone():
    model = vit()
    adapter = LowRankAdapter(model, rank=2)
    for b in adapter.b:
        nn.init.ones_(b)
    before = copy.deepcopy(model.state_dict())
    merged = adapter.merged(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(merged[name], tensor) == (name not in adapter.names)
    name = adapter.names[0]
    assert torch.equal(merged[name][16:32], before[name][16:32])
    assert torch.linalg.matrix_rank(merged[name][:16] - before[name][:16]) <= 2


def test_a_product_that_cannot_be_adapted_is_an_error():
    model = vit()
    adapter = LowRankAdapter(model, rank=2)
    with pytest.raises(ArgumentError, match=r"resblocks\.0\.attn\.in_proj_weight: its product must go through"):
        adapter.check_seen()


def test_impossible_ranks_and_models_are_refused():
    with pytest.raises(ArgumentError, match="rank must be at most 16 for transformer"):
        LowRankAdapter(vit(), rank=17)
    with pytest.raises(ArgumentError, match="names must hold a parameter of the set p1"):
        LowRankAdapter(nn.Linear(3, 3))


def test_an_adapted_tangent_is_the_update_and_takes_its_gradient():
    model = vit()
    adapter = LowRankAdapter(model, rank=3, scale=5.0)
    before = model.state_dict()
    for b in adapter.b:
        torch.nn.init.normal_(b)
    merged = adapter.merged(before)
    for name in adapter.names:
        tangent = AdaptedTangent(adapter, model.get_parameter(name), name)
        torch.testing.assert_close(tangent(), merged[name] - before[name], atol=1e-5, rtol=1e-5)
        g = torch.randn(tangent.shape)
        parts = dict(tangent.parts(name))
        grads = torch.autograd.grad(tangent(), list(parts.values()), g)
        for rows, a, grad in zip(tangent.rows, tangent.a, grads, strict=True):
            torch.testing.assert_close(grad, 5.0 * g[rows] @ a.T)
        assert list(parts) == [f"{name}.b[{rows.start}:{rows.stop}]" for rows in tangent.rows]
