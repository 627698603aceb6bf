"""One forward pass of a model for its value and its tangents."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from taskarith_fast.errors import ArgumentError
from taskarith_fast.tangent.layer_rules import quick_gelu
from taskarith_fast.tangent.pair import NoRuleError, Pair, Tangents, pairs_in

# Layers of torch.nn whose functions have rules. Any other torch.nn layer is refused before the first batch; layers of
# other origin run their own forward, function by function.
RULED = frozenset(
    "Linear NonDynamicallyQuantizableLinear Conv2d LayerNorm RMSNorm MultiheadAttention Embedding GELU SiLU ReLU Tanh "
    "Sigmoid Softmax Identity Dropout Dropout2d Flatten Unflatten Sequential ModuleList ModuleDict ParameterList "
    "ParameterDict Module".split()
)
_QUICK_GELUS = ("QuickGELU", "QuickGELUActivation")  # open_clip and timm; transformers


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x) in one pass; it takes the place of other libraries' modules of this meaning."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x of any shape to the same shape."""
        return quick_gelu(x)


def expansion_point(model: nn.Module) -> nn.Module:
    """A frozen copy of the model in evaluation mode: the expansion point shall not move with the original."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if type(module).__name__ in _QUICK_GELUS:
            module.__class__ = QuickGelu
    return model


def check_rules(model: nn.Module) -> None:
    """Refuse a model with a torch.nn layer that has no rule.

    Raises:
        NoRuleError: Naming the layer and its type.
    """
    for name, module in model.named_modules():
        kind = type(module)
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
    pairs = {name: Pair(parameters[name], ts) for name, ts in tangents.items() if any(t is not None for t in ts)}
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
