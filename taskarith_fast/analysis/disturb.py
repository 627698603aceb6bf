r"""Prune or perturb the weights that masks select (TaLoS 2025, figures 1 and 10).

    prune: w_j = 0        perturb: w_j + N(0, (factor sigma)^2), sigma the standard deviation of the selected weights

The paper writes N(0, 2 sigma I): whether 2 sigma is the deviation or the variance, and whether sigma is one number or
one a tensor, is not settled; all readings are to be had. The ratios of accuracies are `localization.AccuracyRatios`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.masks import Masks
from taskarith_fast.ops.dare import stream

SCOPES = ("tensor", "global")
SPREADS = ("deviation", "variance")


def pruned(state: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """The tensors of `state` that masks select entries of, with those entries 0; `state` is not changed.

    Raises:
        ArgumentError: If a mask has no tensor in `state`, or one of another shape.
    """
    return {name: state[name].masked_fill(mask, 0) for name, mask in _selected(state, masks)}


def perturbed(
    state: Mapping[str, Tensor],
    masks: Masks,
    *,
    factor: float = 2.0,
    spread: str = "deviation",
    scope: str = "global",
    seed: int = 0,
) -> dict[str, Tensor]:
    """The tensors of `state` that masks select entries of, with noise added to those entries.

    Args:
        state: Name -> tensor.
        masks: True = gets noise.
        factor: Multiplies sigma, at least 0.
        spread: Whether factor sigma is the noise's standard "deviation" or its "variance".
        scope: sigma is that of the selected entries of all tensors ("global") or of each ("tensor"), by the population
            formula; the noise has mean 0 in any case.
        seed: Of the noise, which depends on it, the tensor's name and its shape alone.

    Raises:
        ArgumentError: If an argument is out of its domain, or as `pruned`.
    """
    check_choice("spread", spread, SPREADS)
    check_choice("scope", scope, SCOPES)
    if not 0 <= factor < float("inf"):
        raise ArgumentError(f"factor must be finite and at least 0, got {factor}")
    selected = dict(_selected(state, masks))
    values = {name: state[name][mask].double() for name, mask in selected.items()}
    every = _deviation(torch.cat([v.cpu() for v in values.values()])) if values else 0.0
    out = {}
    for name, mask in selected.items():
        size = factor * (every if scope == "global" else _deviation(values[name]))
        noise = _noise(name, mask, seed) * (size if spread == "deviation" else size**0.5)
        out[name] = torch.where(mask, (state[name].double() + noise).to(state[name].dtype), state[name])
    return out


def _selected(state: Mapping[str, Tensor], masks: Masks) -> list[tuple[str, Tensor]]:
    for name in masks:
        if name not in state or state[name].shape != masks.shape(name):
            got = list(state[name].shape) if name in state else "no such tensor"
            raise ArgumentError(f"masks: {name} must have shape {list(masks.shape(name))} in the state, got {got}")
    return [(name, masks[name].to(state[name].device)) for name in masks if masks.count(name)]


def _deviation(values: Tensor) -> float:
    return float(values.std(correction=0))


def _noise(name: str, like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(stream(seed, 0, name))
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)
