"""The change of per-image gradients, against gradients taken one image at a time in float64."""

import pytest
import torch
from torch.func import functional_call

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.evaluate import batches_of
from taskarith_fast.loops.sensitivity import sensitivity_change
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit
from tests.models.tiny import tiny_encoder


def _moved(model, by, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: p.detach() + by * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


def _one_by_one(model, head, images, labels, state, target="logprob"):
    """The gradient of every image's own output, float64 [B, N]."""
    model, head = model.double().eval(), head.double()
    state = {name: tensor.double().requires_grad_() for name, tensor in state.items()}
    rows = []
    for image, label in zip(images.double(), labels, strict=True):
        z = head(functional_call(model, state, (image[None],)))[0]
        f = z[label] if target == "logit" else z.log_softmax(-1)[label]
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(f, list(state.values()))]))
    return torch.stack(rows)


@pytest.mark.parametrize("target", ["logprob", "logit"])
def test_it_is_the_mean_squared_distance_of_per_image_gradients(target):
    model, head = vit(), random_head(16, 10, seed=0)
    batches = list(batches_of(model, digits().splits["val"], batch_size=4, image_size=None))[:2]
    states = [_moved(vit(), 0.0), _moved(vit(), 1e-4), _moved(vit(), 0.1)]
    found = sensitivity_change(model, batches, states, head=head, labels="label", target=target)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    start = _one_by_one(vit(), random_head(16, 10, seed=0), images, labels, dict(vit().named_parameters()), target)
    assert found.start == pytest.approx(float(start.square().sum(1).mean()), rel=1e-4)
    assert found.change[0] < 1e-12 * found.start, "the start itself"
    for state, change in zip(states[1:], found.change[1:], strict=True):
        there = _one_by_one(vit(), random_head(16, 10, seed=0), images, labels, state, target)
        assert change == pytest.approx(float((there - start).square().sum(1).mean()), rel=2e-3)
    assert found.relative[2] == found.change[2] / found.start > found.relative[1]


def test_sampled_classes_are_drawn_once_for_all_states_and_again_by_the_same_seed():
    model, head = vit(), random_head(16, 10, seed=0)
    batches = list(batches_of(model, digits().splits["val"], batch_size=8, image_size=None))[:2]
    states = [dict(vit().state_dict()), _moved(vit(), 0.05)]
    first, same, other = (sensitivity_change(model, batches, states, head=head, seed=seed) for seed in (0, 0, 1))
    assert first == same and first.start != other.start and first.change[0] < 1e-12 * first.start


@pytest.mark.parametrize("family", ["open_clip", "timm"])
def test_encoders_of_other_libraries_are_measured_and_left_as_they_were(family):
    model = tiny_encoder(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, model.image_size, model.image_size)
    found = sensitivity_change(model, [images], [_moved(model, 0.02)], head=random_head(model.feature_dim, 3, seed=0))
    assert 0 < found.relative[0] < 100
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="labels must be one of sampled, label; got 'exact'"):
        sensitivity_change(vit(), [], [], labels="exact")
    with pytest.raises(ArgumentError, match="batches must yield at least one image"):
        sensitivity_change(vit(), [], [], head=random_head(16, 10, seed=0))
