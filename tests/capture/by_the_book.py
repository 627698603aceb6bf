"""Squared per-sample gradients by autograd, one sample and one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def squares(model: nn.Module, images: Tensor, value: Callable[[Tensor, int], Tensor]) -> dict[str, Tensor]:
    """sum_b (d value(output of sample b, b) / d parameter)^2, float64, for every parameter of a model in eval mode."""
    mode, flags = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    for b in range(len(images)):
        v = value(model(images[b : b + 1])[0], b)
        gradients = torch.autograd.grad(v, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.double() ** 2
    model.train(mode)
    for parameter, flag in zip(parameters.values(), flags, strict=True):
        parameter.requires_grad_(flag)
    return total


def assert_close(ours: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Relative to each tensor's norm; a gradient that is rounding alone, as a key bias's, is as good as zero."""
    assert list(ours) == list(truth)
    largest = max(float(t.norm()) for t in truth.values())
    for name, t in truth.items():
        assert ours[name].shape == t.shape and ours[name].dtype == torch.float32
        error = float((ours[name].double() - t).norm())
        assert error <= tolerance * float(t.norm()) + 1e-10 * largest, f"{name}: {error} of {float(t.norm())}"
