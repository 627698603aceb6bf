"""The table of merge methods: name, function, defaults, paper. A new method is one row."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.arithmetic import average, task_arithmetic
from taskarith_fast.merging.breadcrumbs import breadcrumbs
from taskarith_fast.merging.cart import cart
from taskarith_fast.merging.cart_blocks import cart_cut
from taskarith_fast.merging.cart_routing import cart_routing
from taskarith_fast.merging.dare import dare, dare_ties
from taskarith_fast.merging.dare_stream import DARE_STREAMING, DARE_TIES_STREAMING
from taskarith_fast.merging.fisher import FISHER_STREAMING, fisher
from taskarith_fast.merging.learned import AdaMerging, AdaMergingPlusPlus, CartPlusPlus
from taskarith_fast.merging.regmean import REGMEAN_STREAMING, regmean
from taskarith_fast.merging.streaming import ELEMENTWISE, Streaming
from taskarith_fast.merging.tall_mask import consensus, tall_mask
from taskarith_fast.merging.tied_names import under_one_name, with_every_name
from taskarith_fast.merging.ties import ties
from taskarith_fast.merging.ties_stream import TIES_STREAMING


@dataclass(frozen=True)
class Method:
    """One row: a pure function ``(base, finetuned, **parameters) -> state``, where it comes from, how it streams."""

    function: Callable[..., Any]
    paper: str
    needs: str = "weights only"
    streaming: Streaming = ELEMENTWISE

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword parameters and their defaults, read off the function's signature."""
        signature = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}


METHODS = {
    "average": Method(average, "Wortsman et al. 2022, Model soups", streaming=ELEMENTWISE),
    "task_arithmetic": Method(
        task_arithmetic, "Ilharco et al. 2023, Editing models with task arithmetic", streaming=ELEMENTWISE
    ),
    "ties": Method(ties, "Yadav et al. 2023, TIES-Merging", streaming=TIES_STREAMING),
    "dare": Method(dare, "Yu et al. 2024, Language models are super Mario", streaming=DARE_STREAMING),
    "dare+task_arithmetic": Method(dare, "Yu et al. 2024, Language models are super Mario", streaming=DARE_STREAMING),
    "dare+ties": Method(dare_ties, "Yu et al. 2024; Yadav et al. 2023", streaming=DARE_TIES_STREAMING),
    "breadcrumbs": Method(
        breadcrumbs,
        "Davari & Belilovsky 2024, Model breadcrumbs",
        streaming=Streaming(lambda name, shape, parameters: parameters["scope"]),
    ),
    "consensus": Method(consensus, "Wang et al. 2024, Localizing task information", streaming=ELEMENTWISE),
    "fisher": Method(
        fisher,
        "Matena & Raffel 2022, Merging models with Fisher-weighted averaging",
        "fishers, from ta.fisher_diagonal",
        FISHER_STREAMING,
    ),
    "regmean": Method(
        regmean,
        "Jin et al. 2023, Dataless knowledge fusion by merging weights of language models",
        "grams, from ta.gram_matrices",
        REGMEAN_STREAMING,
    ),
    "cart": Method(
        cart,
        "Choi et al. 2024, Revisiting weight averaging for model merging",
        streaming=Streaming(cart_cut, heavy=True),
    ),
}


# Methods that keep one model a task: for ``merge_per_task``.
PER_TASK = {
    "tall_mask": Method(tall_mask, "Wang et al. 2024, Localizing task information"),
    "cart_routing": Method(cart_routing, "Choi et al. 2024, Revisiting weight averaging for model merging, eq. 5"),
}

# Methods that learn their coefficients from images: for ``adamerge``. The function makes the settings.
_IMAGES = "a model, heads and unlabelled images: adamerge"
LEARNED = {
    "adamerging": Method(AdaMerging, "Yang et al. 2024, AdaMerging", _IMAGES),
    "adamerging_plus_plus": Method(AdaMergingPlusPlus, "Yang et al. 2024, AdaMerging", _IMAGES),
    "cart_plus_plus": Method(CartPlusPlus, "Choi et al. 2024, Revisiting weight averaging for model merging", _IMAGES),
}


def merge_methods() -> dict[str, dict[str, Any]]:
    """Every merge method by name; those of ``merge_per_task`` and ``adamerge`` last.

    Returns:
        Name -> {"parameters": {name: default}, "paper": str, "needs": what it reads besides the weights}.
    """
    rows = {**METHODS, **PER_TASK, **LEARNED}
    return {name: {"parameters": m.parameters, "paper": m.paper, "needs": m.needs} for name, m in rows.items()}


def find_method(name: str, parameters: Mapping[str, Any], table: Mapping[str, Method] | None = None) -> Method:
    """The row called `name`, once every one of `parameters` is known to it; ArgumentError with a hint otherwise."""
    if table is None:
        table = METHODS
        _refuse_learned(name)
    if name not in table:
        raise ArgumentError(f"method must be one of {', '.join(table)}; got {name!r}{_hint(name, table)}")
    method = table[name]
    for parameter in parameters:
        if parameter not in method.parameters:
            known = ", ".join(method.parameters) or "none"
            raise ArgumentError(
                f"method {name!r} has the parameters {known}; got {parameter!r}{_hint(parameter, method.parameters)}"
            )
    return method


def merge_per_task(
    base: Mapping[str, Tensor],
    finetuned: Sequence[Mapping[str, Tensor]],
    method: str = "tall_mask",
    **parameters: Any,
) -> list[dict[str, Tensor]]:
    """Make one model for each task out of what is shared: arguments and errors as for `merge`.

    Args:
        base: The pre-trained model.
        finetuned: T models fine-tuned from it.
        method: "tall_mask" or "cart_routing".
        **parameters: The method's own parameters.

    Returns:
        T states in the key order of `base`; tied names as for `merge`.
    """
    row = find_method(method, parameters, PER_TASK)
    states, tied = under_one_name([base, *finetuned], [])
    return [with_every_name(merged, base, tied) for merged in row.function(states[0], states[1:], **parameters)]


def merge(
    base: Mapping[str, Tensor],
    finetuned: Sequence[Mapping[str, Tensor]],
    method: str = "task_arithmetic",
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge fine-tuned models into one.

    Args:
        base: The pre-trained model: name -> tensor.
        finetuned: T models fine-tuned from it, with the same names, shapes and dtypes.
        method: A name from ``merge_methods()``.
        **parameters: The method's own parameters; those left out take the defaults of ``merge_methods()``.

    Returns:
        A new state in the key order of `base`; tensors that are not floating point are copied from it. Names of one
        tensor in a model, tied names, are merged once and are one tensor again.

    Raises:
        ArgumentError: If the method, a parameter, or its value is not known or out of its domain.
        CheckpointError: If the models do not fit together, or hold NaN or Inf.
    """
    row = find_method(method, parameters)
    kind = row.streaming.statistics
    statistics = list(parameters.get(kind.parameter, ())) if kind else []
    states, tied = under_one_name([base, *finetuned], statistics)
    if not tied:
        return row.function(base, list(finetuned), **parameters)
    models, rest = states[: 1 + len(finetuned)], states[1 + len(finetuned) :]
    merged = row.function(models[0], models[1:], **(parameters | ({kind.parameter: rest} if kind else {})))
    return with_every_name(merged, base, tied)


def _refuse_learned(name: str) -> None:
    if name in LEARNED:
        raise ArgumentError(
            f"method {name!r} learns from images, not from weights alone; "
            f"use adamerge(model, base, finetuned, heads, loaders, method={name!r}), or taskarith adamerge"
        )


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
