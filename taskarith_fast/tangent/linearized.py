r"""Models linearized at their weights (Ortiz-Jimenez 2023, "Task Arithmetic in the Tangent Space", section 4).

    f_lin(x; tau) = f(x; theta_0) + J f(x; theta_0) tau                                              (equation 3)

One forward pass carries both terms. As f_lin is linear in tau, its gradient is the ordinary vector-Jacobian product at
theta_0, which needs the activations of f alone: a training step costs five matrix products a layer instead of an
ordinary step's three, and the memory of an ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.tangent.pair import NoRuleError, Pair
from taskarith_fast.tangent.trainable import DenseTangent, LowRankTangent, Tangent
from taskarith_fast.tangent.walk import check_rules, checkpoint_blocks, expansion_point, walk
from taskarith_fast.task_vector import TaskVector

FALLBACKS = ("refuse", "jvp")


class LinearizedModel(nn.Module):
    """f(x; theta_0) + J f(x; theta_0) tau. Build it with `linearize`.

    The expansion point is in evaluation mode whatever mode the module is in: no dropout, as published. torch.compile
    leaves the module as it is.

    Attributes:
        model: The expansion point, a frozen copy of the model.
        tau: The trained tangents, in the order of `names`.
        names: Names of the parameters that have one.
    """

    def __init__(self, model: nn.Module, tangents: Mapping[str, Tangent], fallback: str) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(tangents)
        self.tau = nn.ModuleList(tangents.values())  # type: ignore[arg-type]
        self.fallback = fallback
        self._walks = True

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, each tensor plus its derivative along tau.

        Args:
            args: Arguments of the model, without gradients.
            kwargs: Named arguments of the model.

        Raises:
            ArgumentError: If an input requires a gradient.
            NoRuleError: If the model does something that has no rule; the message names the module.
        """
        tangents = self.tangents()
        if self._walks:
            try:
                out = walk(self.model, {name: (t,) for name, t in tangents.items()}, args, kwargs)
            except NoRuleError:
                if self.fallback != "jvp":
                    raise
                self._walks = False
            else:
                return tree_map(_value_plus_tangent, out)
        return _by_jvp(self.model, tangents, args, kwargs)

    def train(self, mode: bool = True) -> LinearizedModel:
        """Set the mode; the expansion point stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def named_tau(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by the model's names; of a low-rank tangent <name>.left and <name>.right."""
        for name, tangent in zip(self.names, self.tau, strict=True):
            yield from tangent.parts(name)  # type: ignore[operator]

    def tangents(self) -> dict[str, Tensor]:
        """tau as dense tensors by name, differentiable by what is trained; some are the trained parameters."""
        return {name: tangent() for name, tangent in zip(self.names, self.tau, strict=True)}

    def task_vector(self) -> TaskVector:
        """tau as dense deltas, name -> tensor; parameters without a tangent are left out."""
        with torch.no_grad():
            return TaskVector({name: tangent.clone() for name, tangent in self.tangents().items()})

    def load_tau(self, deltas: Mapping[str, Tensor]) -> None:
        """Set tau, for example to a non-linear task vector (post-hoc linearization).

        Args:
            deltas: Name -> delta for exactly the parameters that have a tangent.

        Raises:
            ArgumentError: If names or shapes differ, a delta is not 0 outside the mask, or tau has a low rank.
        """
        if deltas.keys() != set(self.names):
            name = sorted(deltas.keys() ^ set(self.names))[0]
            raise ArgumentError(f"{name} must be in both deltas and tau, got it in one only")
        for name, tangent in zip(self.names, self.tau, strict=True):
            if not isinstance(tangent, DenseTangent):
                raise ArgumentError(f"{name} has a low-rank tangent, which cannot take a dense delta")
            _check_delta(name, deltas[name], tangent)
        with torch.no_grad():
            for name, tangent in zip(self.names, self.tau, strict=True):
                tangent.value.copy_(deltas[name])  # type: ignore[operator, union-attr]


def linearize(
    model: nn.Module,
    *,
    names: Collection[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    rank: int | None = None,
    tangents: Mapping[str, Tangent] | None = None,
    checkpointing: bool = False,
    fallback: str = "refuse",
) -> LinearizedModel:
    """Linearize a model at its present weights.

    Args:
        model: An image encoder of open_clip, timm, Hugging Face or ours, or any module whose functions have rules. It
            is copied and not changed.
        names: Parameters that have a tangent, for example ``models.linear_layer_names(...)``; all if None. A parameter
            without one costs nothing.
        masks: Name -> mask (True = trained) of the parameter's shape; a parameter without a mask, or with one that is
            False everywhere, has no tangent. None trains all entries.
        rank: Give matrices with both sides longer than this a tangent of this rank, the others a dense one.
        tangents: Name -> a module that makes the parameter's tangent, such as ``models.lora.AdaptedTangent``; no other
            parameter has one. It excludes names, masks and rank.
        checkpointing: Compute the activations of each block again in the backward pass instead of keeping them.
        fallback: "refuse" what has no rule, or run the whole model by torch.func.jvp ("jvp"): slower, and more memory.

    Returns:
        A module of which only tau is trained; tau starts at 0.

    Raises:
        ArgumentError: If a name or mask does not fit the model, arguments exclude each other, or the model's own
            checkpointing is on.
        NoRuleError: If a torch.nn layer has no rule; layers of other origin are judged in their first forward pass.
    """
    check_choice("fallback", fallback, FALLBACKS)
    if fallback == "refuse":
        check_rules(model)
    weights = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    if tangents is not None and not (names is masks is rank is None):
        raise ArgumentError("tangents excludes names, masks and rank; give it alone")
    chosen = _chosen(weights, names if tangents is None else tangents.keys(), masks)
    if rank is not None and (masks is not None or rank < 1):
        raise ArgumentError(f"rank must be at least 1 and excludes masks, got {rank}")

    def tangent(name: str) -> Tangent:
        if tangents is not None:
            return tangents[name]
        weight = weights[name].detach()
        if rank is not None and weight.dim() == 2 and min(weight.shape) > rank:
            return LowRankTangent(weight, rank)
        return DenseTangent(weight, None if masks is None else masks[name])

    point = expansion_point(model)
    if checkpointing:
        checkpoint_blocks(point)
    return LinearizedModel(point, {name: tangent(name) for name in chosen}, fallback)


def _chosen(
    weights: Mapping[str, Tensor], names: Collection[str] | None, masks: Mapping[str, Tensor] | None
) -> list[str]:
    """Names of the parameters that have a tangent, in the model's order."""
    for name in [*(names or ()), *(masks or ())]:
        if name not in weights:
            raise ArgumentError(f"{name} must be a floating parameter of the model, such as {next(iter(weights), '')}")
    for name, mask in (masks or {}).items():
        if mask.shape != weights[name].shape or mask.dtype != torch.bool:
            raise ArgumentError(
                f"{name}: its mask must be bool {list(weights[name].shape)}, got {mask.dtype} {list(mask.shape)}"
            )
    wanted = set(weights if names is None else names)
    if masks is not None:
        wanted &= {name for name, mask in masks.items() if mask.any()}
    return [name for name in weights if name in wanted]


def _check_delta(name: str, delta: Tensor, tangent: DenseTangent) -> None:
    if delta.shape != tangent.value.shape:
        raise ArgumentError(f"{name} must have shape {list(tangent.value.shape)}, got {list(delta.shape)}")
    if tangent.bits is not None and delta.to(tangent.value.device)[~tangent.mask()].any():
        raise ArgumentError(f"{name} must be 0 where its mask is False")


def _value_plus_tangent(x: Any) -> Any:
    if not isinstance(x, Pair):
        return x
    tangent = x.tangents[0]
    return x.value if tangent is None else x.value + tangent


def _by_jvp(model: nn.Module, tangents: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """torch's forward-mode AD, with the attention kernels that have it."""
    call: Callable[[Any], Any] = lambda weights: functional_call(model, weights, args, kwargs)  # noqa: E731
    weights = {name: p for name, p in model.named_parameters() if name in tangents}
    with sdpa_kernel(SDPBackend.MATH), _slow_attention():
        value, tangent = jvp(call, (weights,), (dict(tangents),))  # type: ignore[misc]
    return tree_map(lambda v, t: v + t, value, tangent)


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Keep nn.MultiheadAttention off its inference kernel, which has no forward-mode AD."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
