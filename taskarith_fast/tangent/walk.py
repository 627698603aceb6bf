"""One forward pass of a model for its value and its tangents."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from taskarith_fast.errors import ArgumentError
from taskarith_fast.tangent.layer_rules import gated, quick_gelu
from taskarith_fast.tangent.pair import NoRuleError, Pair, Tangents, paired, pairs_in

# Layers of torch.nn whose functions have rules. Any other torch.nn layer is refused before the first batch; layers of
# other origin run their own forward, function by function.
RULED = frozenset([
    "Linear", "NonDynamicallyQuantizableLinear", "Conv2d", "LayerNorm", "RMSNorm", "MultiheadAttention", "Embedding",
    "GELU", "SiLU", "ReLU", "Tanh", "Sigmoid", "Softmax", "Identity", "Dropout", "Flatten", "Unflatten",
    "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Module",
])  # fmt: skip
_QUICK_GELUS = ("QuickGELU", "QuickGELUActivation")  # open_clip and timm; transformers
# The activations of T5's gated layers, by the names of dual_glu.
_GATES = {
    "NewGELUActivation": "gelu_tanh", "TanhGelu": "gelu_tanh", "GELUActivation": "gelu", "GELU": "gelu",
    "ReLU": "relu", "SiLU": "silu", "SiLUActivation": "silu",
}  # fmt: skip


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x) in one pass; it takes the place of other libraries' modules of this meaning."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x of any shape to the same shape."""
        return quick_gelu(x)


class GatedDense(nn.Module):
    """T5's gated layer, without dropout; the product with its gate and the activation are one function."""

    wi_0: nn.Module
    wi_1: nn.Module
    wo: nn.Linear
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape [..., d] to the same shape."""
        y = gated(self.wi_0(x), self.wi_1(x), _GATES[type(self.act).__name__])
        return self.wo(y.to(self.wo.weight.dtype))


def expansion_point(model: nn.Module) -> nn.Module:
    """A frozen copy of the model in evaluation mode: the expansion point shall not move with the original."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        kind = type(module).__name__
        if kind in _QUICK_GELUS:
            module.__class__ = QuickGelu
        elif kind == "T5DenseGatedActDense" and type(module.act).__name__ in _GATES:
            module.__class__ = GatedDense
    return model


def checkpoint_blocks(model: nn.Module) -> None:
    """Let the blocks of a model, in place, compute their activations again in the backward pass.

    Blocks are the items of the longest nn.ModuleList or nn.Sequential of one type, and of others of this type.

    Raises:
        ArgumentError: If there is no such list.
    """
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len({*map(type, m)}) == 1]
    if not lists:
        raise ArgumentError("checkpointing needs a model with a list of blocks of one type, got none")
    kind = type(max(lists, key=len)[0])
    for block in [block for blocks in lists if type(blocks[0]) is kind for block in blocks]:
        block.__class__ = type(kind.__name__, (kind,), {"forward": _checkpointed_forward, "_running": False})


def _checkpointed_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a block. Its Pairs are bound here, because they are gone from it when it runs again."""
    pairs: dict[str, Tensor] = {name: p for name, p in self.named_parameters() if isinstance(p, Pair)}
    plain: Any = super(type(self), type(self)).forward
    if self._running or not torch.is_grad_enabled() or not has_tangent([pairs, list(args)]):
        return plain(self, *args, **kwargs)

    def run(*args: Any) -> Any:
        self._running = True
        try:
            return functional_call(self, pairs, args, kwargs)
        finally:
            self._running = False

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


def check_rules(model: nn.Module) -> None:
    """Refuse a model with a torch.nn layer that has no rule, or with checkpointing of its own.

    Raises:
        ArgumentError: If the model's own checkpointing is on.
        NoRuleError: Naming the layer and its type.
    """
    for name, module in model.named_modules():
        kind = type(module)
        if getattr(module, "grad_checkpointing", False) or getattr(module, "gradient_checkpointing", False):
            raise ArgumentError(
                f"{name or 'the model'} has its own checkpointing on, which would lose tangents; turn it off and pass "
                "checkpointing=True"
            )
        if kind.__module__.startswith("torch.nn.") and kind.__name__ not in RULED:
            raise _refused(name, module, "its type has none")


def walk(model: nn.Module, tangents: Mapping[str, Tangents], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run the model once, its parameters paired with their tangents.

    Args:
        model: From expansion_point.
        tangents: Parameter name -> T tangents, None for zeros.
        args: Positional arguments of the model, without gradient.
        kwargs: Named arguments.

    Returns:
        What the model returns, with a Pair for each tensor that has a tangent.

    Raises:
        ArgumentError: If an input requires a gradient.
        NoRuleError: If the model does something that has no rule, naming the module.
    """
    for x in [*args, *kwargs.values()]:
        if isinstance(x, Tensor) and x.requires_grad:
            raise ArgumentError("inputs of a linearized model must not require gradients; pass x.detach()")
    parameters = dict(model.named_parameters())
    pairs = {name: paired(parameters[name], ts) for name, ts in tangents.items()}
    try:
        return functional_call(model, pairs, args, dict(kwargs))
    except NoRuleError as error:
        raise _located(model, error) from error


def has_tangent(x: Any) -> bool:
    """Whether a Pair is in the structure."""
    return next(iter(pairs_in(x)), None) is not None


def _located(model: nn.Module, error: NoRuleError) -> NoRuleError:
    """The same error with the innermost module whose forward was running."""
    names = {id(module): name for name, module in model.named_modules()}
    traceback, found = error.__traceback__, None
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        found = owner if isinstance(owner, nn.Module) and id(owner) in names else found
        traceback = traceback.tb_next
    return error if found is None else _refused(names[id(found)], found, str(error))


def _refused(name: str, module: nn.Module, reason: str) -> NoRuleError:
    return NoRuleError(
        f"{name or 'the model'} ({type(module).__name__}) must be a module with a rule for tangents: {reason}; "
        "add a rule in taskarith_fast/tangent, or pass fallback='jvp' (slow)"
    )
