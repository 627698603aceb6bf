r"""Features of one model edited along many directions: every scale on a grid from one forward pass.

    f_lin(x; sum_t alpha_t tau_t) = f(x; theta_0) + sum_t alpha_t J tau_t

f and the T derivatives J tau_t are computed once, in one pass that shares f; any grid of alphas then is a small matrix
product. Post-hoc linearization of non-linear task vectors (Ortiz-Jimenez 2023, section 5) is the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.inputs import Inputs
from taskarith_fast.tangent.pair import Pair, Tangents
from taskarith_fast.tangent.walk import check_rules, expansion_point, walk


class TangentFeatures:
    """The features of images and their derivatives along T task vectors.

    Args:
        model: An encoder, from images to features [B, D], as `linearize` takes it.
        images: One batch [n, C, H, W], or of texts as a dict of what the model takes, or an iterable of batches, each
            such images or (images, labels, ...).
        taus: T task vectors, name -> delta. A name must be a parameter of the model, or its delta be 0.

    Attributes:
        value: f(x; theta_0), shape [n, D].
        tangents: J tau_t, shape [T, n, D].
        labels: What the batches held beside the images, shape [n, ...]; None if nothing.

    Raises:
        ArgumentError: If there is no task vector or image, or a delta does not fit the model.
        NoRuleError: If the model does something that has no rule for tangents.
    """

    def __init__(self, model: nn.Module, images: Inputs | Iterable[Any], taus: Sequence[Mapping[str, Tensor]]) -> None:
        if isinstance(taus, Mapping) or len(taus) == 0:
            raise ArgumentError("taus must be a list of at least one task vector")
        check_rules(model)
        model = expansion_point(model)
        tangents = _by_name(model, taus)
        values, derivatives = [], []
        labels: list[Any] = []
        with torch.no_grad():
            for batch, label in _batches(images):
                value, tangent = _features(walk(model, tangents, *_arguments(batch)), len(taus))
                values.append(value)
                derivatives.append(tangent)
                labels.append(label)
        if not values:
            raise ArgumentError("images must hold at least one batch, got none")
        self.value, self.tangents = torch.cat(values), torch.cat(derivatives, dim=1)
        self.labels = None if labels[0] is None else torch.cat(labels)

    def at(self, alphas: Tensor | Sequence[Any]) -> Tensor:
        """Features at one point of the grid, or at many.

        Args:
            alphas: One scale a task, shape [T], or a point a row, shape [A, T].

        Returns:
            Shape [n, D], or [A, n, D].

        Raises:
            ArgumentError: If the last dimension is not T.
        """
        tasks = len(self.tangents)
        scales = torch.as_tensor(alphas, dtype=self.value.dtype, device=self.value.device)
        if scales.dim() not in (1, 2) or scales.shape[-1] != tasks:
            raise ArgumentError(f"alphas must have shape [T={tasks}] or [A, T={tasks}], got {list(scales.shape)}")
        moved = scales.reshape(-1, tasks) @ self.tangents.flatten(1)  # [A, n D]
        out = self.value + moved.view(-1, *self.value.shape)
        return out if scales.dim() == 2 else out[0]


def _by_name(model: nn.Module, taus: Sequence[Mapping[str, Tensor]]) -> dict[str, Tangents]:
    """Parameter name -> T tangents; zeros are left out, so that they cost nothing."""
    parameters = dict(model.named_parameters())
    columns: dict[str, list[Tensor | None]] = {name: [None] * len(taus) for name in parameters}
    for t, tau in enumerate(taus):
        for name, delta in tau.items():
            if not delta.any():
                continue
            if name not in parameters or parameters[name].shape != delta.shape:
                want = list(parameters[name].shape) if name in parameters else "no parameter of this name"
                raise ArgumentError(f"taus[{t}]: {name} has shape {list(delta.shape)}, the model has {want}")
            columns[name][t] = delta.detach().to(parameters[name])
    return {name: tuple(column) for name, column in columns.items()}


def _arguments(batch: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), dict(batch)) if isinstance(batch, Mapping) else ((batch,), {})


def _batches(images: Inputs | Iterable[Any]) -> Iterator[tuple[Inputs, Tensor | None]]:
    batches: Iterable[Any] = [images] if isinstance(images, (Tensor, Mapping)) else images
    for batch in batches:
        if isinstance(batch, (Tensor, Mapping)):
            yield batch, None
        else:
            yield batch[0], batch[1] if len(batch) > 1 else None


def _features(out: Any, tasks: int) -> tuple[Tensor, Tensor]:
    """Value [B, D] and tangents [T, B, D] of a forward pass."""
    if not isinstance(out, Tensor):
        raise ArgumentError(f"model must return one tensor of features, got {type(out).__name__}")
    if not isinstance(out, Pair):
        return out, out.new_zeros(tasks, *out.shape)
    zeros = torch.zeros_like(out.value)
    return out.value, torch.stack([zeros if t is None else t for t in out.tangents])
