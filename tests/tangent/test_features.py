"""TangentFeatures: one pass for every point of the grid."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from tests.tangent.models import encoder, images


def _taus(model, count, spread=0.05):
    g = torch.Generator().manual_seed(5)
    draw = lambda p: (spread * torch.randn(p.shape, generator=g)).to(p.dtype)  # noqa: E731
    return [ta.TaskVector({n: draw(p) for n, p in model.named_parameters()}) for _ in range(count)]


@pytest.mark.parametrize("name", ["ours", "open_clip, quick gelu, layer scale", "timm"])
def test_every_point_of_the_grid_is_the_linearized_model_there(name):
    model, x = encoder(name, torch.float64), images(3, torch.float64)
    taus = _taus(model, 3)
    found = ta.TangentFeatures(model, x, taus)
    grid = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.3, -2.0, 0.7]], dtype=torch.float64)
    points = found.at(grid)
    assert points.shape == (3, 3, found.value.shape[-1]) and found.tangents.shape == points.shape
    lin = ta.linearize(model)
    for alphas, point in zip(grid, points, strict=True):
        lin.load_tau({n: sum(a * t[n] for a, t in zip(alphas, taus, strict=True)) for n in lin.names})
        torch.testing.assert_close(point, lin(x).detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.at([0.3, -2.0, 0.7]), points[2])


def test_batches_give_what_one_batch_gives_with_their_labels():
    model, x, labels = encoder("ours", torch.float64), images(5, torch.float64), torch.arange(5)
    taus = _taus(model, 2)
    whole = ta.TangentFeatures(model, x, taus)
    parts = ta.TangentFeatures(model, [(x[:2], labels[:2]), (x[2:], labels[2:])], taus)
    torch.testing.assert_close(parts.tangents, whole.tangents, rtol=1e-12, atol=1e-12)
    assert torch.equal(parts.labels, labels) and whole.labels is None


def test_tasks_that_leave_parameters_alone_may_have_zeros_or_fewer_names():
    model, x = encoder("ours", torch.float64), images(dtype=torch.float64)
    full, other = _taus(model, 2)
    name = "ln_post.bias"
    only = ta.TaskVector({name: other[name]})
    zeros = ta.TaskVector({n: d if n == name else torch.zeros_like(d) for n, d in other.items()})
    found = ta.TangentFeatures(model, x, [full, only, zeros])
    assert torch.equal(found.tangents[1], found.tangents[2]) and found.tangents[1].any()
    nothing = ta.TangentFeatures(model, x, [{}])
    assert not nothing.tangents.any() and torch.equal(nothing.value, model(x))


def test_arguments_that_do_not_fit_are_refused():
    model, x = encoder("ours"), images()
    tau = _taus(model, 1)[0]
    with pytest.raises(ArgumentError, match="taus must be a list"):
        ta.TangentFeatures(model, x, tau)
    with pytest.raises(ArgumentError, match=r"taus\[0\]: head has shape \[3\], the model has no parameter"):
        ta.TangentFeatures(model, x, [{"head": torch.ones(3)}])
    with pytest.raises(ArgumentError, match="at least one batch"):
        ta.TangentFeatures(model, [], [tau])
    with pytest.raises(ArgumentError, match=r"alphas must have shape \[T=1\] or \[A, T=1\], got \[2\]"):
        ta.TangentFeatures(model, x, [tau]).at([1.0, 2.0])
