"""The table of analyses, and one of them from files to a folder: numbers first, figures from the numbers alone.

DIR/<kind>.npz           every array, no pickles: ``numpy.load(path)``
DIR/<kind>.json          what was analysed, by which parameters, with the hashes of all inputs
DIR/<kind>*.light.png    figures, and *.dark.png the same for dark pages
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from taskarith_fast.analysis.edits import stderr
from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.loops import analyze_kinds as run
from taskarith_fast.loops.analyze_inputs import Inputs

_PAPER_SAMPLES = 2048


@dataclass(frozen=True)
class Kind:
    """One row: a function of `Inputs` and keyword parameters, where it comes from, and what it needs."""

    run: Callable[..., Any]
    paper: str
    cost: str
    """How many times a model goes through a task's images, or what else takes the time."""
    models: int = 0
    """Least number of fine-tuned models or task vectors; 0 for an analysis of masks alone."""
    tasks: str = "none"
    """"none"; "any" number of tasks; "each", one a model; "recipes", one a model of each recipe."""
    masks: int = 0
    """Least number of masks."""
    samples: int | None = None
    """Images of each task that the papers take; None for all."""
    linearized: bool = False
    """Whether it may judge linearized models."""

    @property
    def title(self) -> str:
        """One line about it."""
        return (inspect.getdoc(self.run) or "").splitlines()[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters and their defaults, read off the function's signature."""
        found = inspect.signature(self.run).parameters.values()
        return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}

    @property
    def needs(self) -> str:
        """What to hand in, in words."""
        words = {"any": "tasks with heads", "each": "a task with its head for each model",
                 "recipes": "tasks with heads, and a model for each of them in every recipe"}  # fmt: skip
        models = f"base and at least {self.models} models or task vectors" if self.models else ""
        base = "base" if not self.models and self.tasks != "none" else ""
        masks = f"at least {self.masks} masks" if self.masks else ""
        return ", ".join(part for part in (models, base, masks, words.get(self.tasks, "")) if part)


KINDS = {
    "disentanglement": Kind(
        run.disentanglement,
        "Ortiz-Jimenez 2023, eq. 5; TaLoS figure 2; Jin figures 4, 7; Hazimeh figure 1",
        "2 n + 2 n^2 for an n x n grid; linearized: one pass with tangents a task",
        models=2, tasks="each", samples=_PAPER_SAMPLES, linearized=True,
    ),
    "cosine": Kind(run.cosine, "Ilharco 2023, figure 5; Jin figure 5", "one read of every model", models=1),
    "localization": Kind(
        run.localization, "TaLoS figure 3", "(T + 1) V", models=1, tasks="any", linearized=True
    ),
    "mask_share": Kind(run.mask_share, "TaLoS figures 4, 5", "one read of the masks", masks=1),
    "mask_iou": Kind(run.mask_iou, "TaLoS figure 11", "one AND of bits for every two masks", masks=2),
    "prune": Kind(run.prune, "TaLoS figure 1", "(M + 1) V for M masks", tasks="any", masks=1),
    "perturb": Kind(run.perturb, "TaLoS figure 10", "(M + 1) V for M masks", tasks="any", masks=1),
    "sensitivity_drift": Kind(
        run.sensitivity_drift,
        "TaLoS figure 7",
        "(T + 1) V, each with a backward pass",
        models=1, tasks="any", samples=_PAPER_SAMPLES,
    ),
    "landscape": Kind(
        run.landscape,
        "CART figures 4, 7, 8",
        "n^2 V for an n x n grid, one decomposition, one read of every model for the n x n Gram matrix",
        models=1, tasks="any", samples=_PAPER_SAMPLES,
    ),
    "rank_sweep": Kind(
        run.cart_ranks, "CART figures 1, 2, 5", "O D R V for O origins, D orders, R ranks; O decompositions",
        models=1, tasks="any",
    ),
    "routing": Kind(
        run.routing, "CART figure 3", "O D R V for O origins, D orders, R ranks; O decompositions",
        models=1, tasks="each",
    ),
    "task_count": Kind(
        run.task_count, "Hazimeh figure 6; CART figure 6", "V 2^(V - 1) for each scale", models=1, tasks="each",
        linearized=True,
    ),
    "lambda_curve": Kind(
        run.lambda_curve, "Hazimeh figure 2; Ilharco 2023", "(S + 1) V for S scales", models=1, tasks="each",
        linearized=True,
    ),
    "radar": Kind(
        run.radar, "TaLoS figure 9; Jin figures 3, 6", "one for each model", models=1, tasks="recipes", linearized=True
    ),
}  # fmt: skip


def analysis_kinds() -> dict[str, dict[str, Any]]:
    """Every analysis by name.

    Returns:
        Name -> {"title", "paper", "needs", "cost", "parameters": {name: default}}.
    """
    fields = ("title", "paper", "needs", "cost", "parameters")
    return {name: {field: getattr(kind, field) for field in fields} for name, kind in KINDS.items()}


def find_kind(name: str, parameters: Mapping[str, Any]) -> Kind:
    """The row called `name`, once all `parameters` are known to it and of the right types; ArgumentError otherwise."""
    if name not in KINDS:
        raise ArgumentError(f"kind must be one of {', '.join(KINDS)}; got {name!r}{_hint(name, KINDS)}")
    known = KINDS[name].parameters
    for parameter, value in parameters.items():
        if parameter not in known:
            names = ", ".join(known) or "none"
            raise ArgumentError(f"{name} has the parameters {names}; got {parameter!r}{_hint(parameter, known)}")
        if not _like(value, known[parameter]):
            raise ArgumentError(f"{parameter} must be like {_shown(known[parameter])}, got {value!r}")
    return KINDS[name]


def check_inputs(name: str, *, models: int, masks: int, tasks: int, base: bool, split: str, linearized: bool) -> None:
    """Refuse inputs that an analysis cannot use, by their numbers; ArgumentError."""
    kind = KINDS[name]
    check_choice("split", split, ("train", "val", "test"))
    if models < kind.models or masks < kind.masks or (kind.tasks != "none" and not tasks):
        raise ArgumentError(f"{name} needs {kind.needs}; got {models} models, {masks} masks, {tasks} tasks")
    if (kind.models or kind.tasks != "none") and not base:
        raise ArgumentError(f"{name} needs {kind.needs}; got no base")
    for count, wanted, what in ((models, kind.models, "models"), (masks, kind.masks, "masks")):
        if count and not wanted:
            raise ArgumentError(f"{name} takes no {what}, got {count}; it needs {kind.needs}")
    if tasks and kind.tasks == "none":
        raise ArgumentError(f"{name} takes no tasks, got {tasks}; it needs {kind.needs}")
    if (kind.tasks == "each" and tasks != models) or (kind.tasks == "recipes" and models % tasks):
        raise ArgumentError(f"{name} needs {kind.needs}; got {models} models and {tasks} tasks")
    if linearized and not kind.linearized:
        able = ", ".join(other for other, row in KINDS.items() if row.linearized)
        raise ArgumentError(f"linearized models are for {able}; got {name}")


def analyze(name: str, inputs: Inputs, **parameters: Any) -> dict[str, np.ndarray]:
    """Run one analysis.

    Args:
        name: A name of ``analysis_kinds()``.
        inputs: What it works on.
        **parameters: Its parameters; those left out take their defaults.

    Returns:
        Array name -> array: what the analysis found, names of "models", "masks" and "tasks", and "accuracy_stderr",
        binomial standard errors, where there are accuracies.

    Raises:
        ArgumentError: If the analysis or a parameter is not known or out of its domain, or inputs are missing.
        CheckpointError: If models do not fit together.
    """
    kind = find_kind(name, parameters)
    check_inputs(
        name, models=len(inputs.vectors), masks=len(inputs.masks), tasks=len(inputs.tasks),
        base=inputs.base is not None, split=inputs.split, linearized=inputs.linearized,
    )  # fmt: skip
    found = _arrays(kind.run(inputs, **parameters))
    if "accuracy" in found:
        found["accuracy_stderr"] = stderr(found["accuracy"], found["images"])
    names = {"models": list(inputs.labels), "masks": list(inputs.masks), "tasks": list(inputs.tasks)}
    return {**found, **{key: np.array(value, dtype=str) for key, value in names.items() if value}}


def _arrays(result: Any) -> dict[str, np.ndarray]:
    """Fields and properties of a result as arrays."""
    if not isinstance(result, dict):
        derived = [n for n, value in vars(type(result)).items() if isinstance(value, property)]
        result = {**vars(result), **{n: getattr(result, n) for n in derived}}
    return {n: v.numpy() if isinstance(v, Tensor) else np.asarray(v) for n, v in result.items()}


def _like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default: numbers serve as floats, and lists of the right items as tuples."""
    if isinstance(default, Mapping):
        return isinstance(value, Mapping)
    if isinstance(default, (tuple, list)):
        return isinstance(value, (tuple, list)) and all(_like(v, default[0] if default else 1) for v in value)
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def _shown(default: Any) -> str:
    return repr(list(default)) if isinstance(default, tuple) else repr(default)


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
