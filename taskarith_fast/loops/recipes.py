"""Fine-tuning recipes: what of an encoder is trained, and whether in its tangent space.

One table names them all; `prepare` lets exactly what a recipe names have gradients. Whatever else has none, no
decay and no optimizer state, and ends bit-identical. "linearized+" before a recipe trains the same, of the encoder
linearized at its pre-trained weights; "linearized" alone trains every tensor so (Ortiz-Jimenez 2023).

Every recipe is trained by AdamW. LoTA's own code trains its masked weights by RMSprop; AdamW is what it is given in
TaLoS's comparisons.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from taskarith_fast.errors import ArgumentError
from taskarith_fast.masks import Masks
from taskarith_fast.models import LINEAR_LAYER_SETS, compact_gradients, linear_layer_names
from taskarith_fast.models.blocks import checkpoint_activations
from taskarith_fast.models.lora import AdaptedTangent, LowRankAdapter
from taskarith_fast.tangent import LinearizedModel, linearize

if TYPE_CHECKING:
    from taskarith_fast.loops.config import FinetuneConfig


@dataclass(frozen=True)
class Recipe:
    """A row of the table."""

    text: str
    """What is trained, and the paper."""
    kind: str
    """"tensors" (whole, by name), "masks" (the entries of given masks) or "low_rank" (factors beside the weights)."""
    clip_over: str = "all"
    """Entries of the trained tensors whose gradients count for clipping: "all" or "selected"."""
    linearized: bool = False
    """Whether the encoder linearized at its start is trained in the encoder's place."""


_LINEARIZED = "linearized"
_PLAIN = {
    "full": Recipe("every tensor", "tensors"),
    "qkvo": Recipe("attention weights, the set p1 (Jin 2024)", "tensors"),
    **{name: Recipe(f"{text} (Jin 2024)", "tensors") for name, text in LINEAR_LAYER_SETS.items()},
    "bitfit": Recipe("every bias (Ben Zaken 2022)", "tensors"),
    "talos": Recipe("the least sensitive entries, given as masks (Iurada 2025)", "masks", "all"),
    "lota": Recipe("the entries that full fine-tuning changed most, given as masks (Panda 2024)", "masks", "selected"),
    "masked": Recipe("the entries of any masks", "masks", "selected"),
    "lora": Recipe("low-rank updates of query and value, their input factor frozen (L-LoRA, Tang 2024)", "low_rank"),
}
RECIPES = {
    **_PLAIN,
    _LINEARIZED: Recipe("every tensor, in the tangent space (Ortiz-Jimenez 2023)", "tensors", linearized=True),
    **{
        f"{_LINEARIZED}+{name}": replace(recipe, text=f"{recipe.text}, in the tangent space", linearized=True)
        for name, recipe in _PLAIN.items()
        if name != "full"
    },
}
"""Recipe by name."""


def within(recipe: str) -> str:
    """What a recipe trains, whether linearized or not: the name of a recipe that is not."""
    return "full" if recipe == _LINEARIZED else recipe.removeprefix(f"{_LINEARIZED}+")


def linearized(recipe: str) -> str:
    """The recipe that trains the same in the tangent space."""
    return _LINEARIZED if recipe == "full" else f"{_LINEARIZED}+{recipe}"


@dataclass(frozen=True, eq=False)
class Prepared:
    """What `prepare` found."""

    names: tuple[str, ...]
    """Encoder tensors that will change."""
    encoder: nn.Module
    """What the passes go through: the encoder, or the encoder linearized."""
    adapter: LowRankAdapter | None = None
    """The factors of a low-rank recipe, which are trained in the tensors' place."""


def prepare(model: nn.Module, config: FinetuneConfig, masks: Masks | None = None) -> Prepared:
    """Let exactly what ``config.recipe`` trains have gradients, in place; checkpoint activations if it says so.

    Of a linearized recipe the entries that masks leave out have a tangent too, which the optimizer keeps at 0: so the
    norm for clipping is that of the same recipe without "linearized".

    Args:
        model: The encoder that will be trained.
        config: Names the recipe.
        masks: `Masks` for a recipe of the kind "masks": a tensor without a mask, or with an empty one, is frozen.

    Raises:
        ArgumentError: If masks are missing, superfluous, empty or not this model's, or the recipe finds nothing.
        NoRuleError: If the recipe is linearized and the encoder cannot be.
    """
    recipe = RECIPES[config.recipe]
    if (masks is None) == (recipe.kind == "masks"):
        given = "got none; make them with taskarith calibrate" if masks is None else "got masks; try recipe 'masked'"
        raise ArgumentError(f"masks must be given for the recipes {_masked()} only: {config.recipe!r} {given}")
    adapter = None
    if recipe.kind == "low_rank":
        scale = config.lora_alpha / (config.lora_rank if config.lora_scaling == "alpha_over_rank" else 1)
        adapter = LowRankAdapter(model, rank=config.lora_rank, scale=scale, seed=config.seed)
        names = adapter.names
    else:
        names = _tensor_names(model, within(config.recipe)) if masks is None else _mask_names(model, masks)
    if recipe.linearized:
        return Prepared(names, _linearize(model, names, adapter, config.checkpoint_activations))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(adapter is None and name in names)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    return Prepared(names, model, adapter)


def _linearize(
    model: nn.Module, names: tuple[str, ...], adapter: LowRankAdapter | None, checkpointing: bool
) -> LinearizedModel:
    if adapter is None:
        return linearize(model, names=names, checkpointing=checkpointing)
    tangents = {name: AdaptedTangent(adapter, model.get_parameter(name), name) for name in names}
    return linearize(model, tangents=tangents, checkpointing=checkpointing)


def clip_over(config: FinetuneConfig) -> str:
    """Which gradients of trained tensors count for clipping: "all" or "selected"."""
    return config.clip_over or RECIPES[config.recipe].clip_over


def has_compact_gradients(config: FinetuneConfig, processes: int) -> bool:
    """Whether dense layers make gradients of selected entries alone; tangents, clipping over all and DDP need more."""
    recipe = RECIPES[config.recipe]
    dense = recipe.linearized or (config.clip is not None and clip_over(config) == "all")
    return recipe.kind == "masks" and not dense and processes == 1


def check_steps_in_backward(config: FinetuneConfig) -> None:
    """Refuse steps in the backward pass of a run that needs all gradients at once.

    Raises:
        ArgumentError: Naming the field that must change.
    """
    recipe = RECIPES[config.recipe]
    if recipe.kind != "masks" or recipe.linearized:
        raise ArgumentError(f"step_in_backward is for the recipes {_masked()} only, got {config.recipe!r}")
    for name, needed in (("clip", None), ("accumulation", 1)):
        if getattr(config, name) != needed:
            raise ArgumentError(f"{name} must be {needed} for step_in_backward, got {getattr(config, name)}")


def surroundings(
    prepared: Prepared, config: FinetuneConfig, masks: Masks | None, processes: int, optimizer: Any = None
) -> AbstractContextManager[None]:
    """What must surround forward and backward passes: low-rank updates, or compact gradients where possible.

    With ``config.step_in_backward`` the `optimizer` takes its steps there.
    """
    if prepared.adapter is not None:
        return prepared.adapter.applied()
    if masks is not None and has_compact_gradients(config, processes):
        on_gradient = None
        if config.step_in_backward and optimizer is not None:
            optimizer.step_in_backward()
            on_gradient = optimizer.step_parameter
        return compact_gradients(prepared.encoder, masks, on_gradient=on_gradient)
    return nullcontext()


def _tensor_names(model: nn.Module, recipe: str) -> tuple[str, ...]:
    names = tuple(name for name, _ in model.named_parameters())
    if recipe == "full":
        return names
    if recipe != "bitfit":
        return linear_layer_names(names, "p1" if recipe == "qkvo" else recipe)
    biases = tuple(name for name in names if re.search(r"(^|[._])bias$", name))
    if not biases:
        raise ArgumentError("recipe 'bitfit' needs an encoder with biases, got one without; try qkvo")
    return biases


def _mask_names(model: nn.Module, masks: Masks) -> tuple[str, ...]:
    """The parameters of which a mask selects an entry, in the model's order."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in masks:
        if name not in shapes:
            raise ArgumentError(
                f"masks: {name} is no parameter of this encoder; expected names as {next(iter(shapes))}"
            )
        if masks.shape(name) != shapes[name]:
            raise ArgumentError(f"masks: {name} must have shape {shapes[name]}, got {masks.shape(name)}")
    names = tuple(name for name in shapes if name in masks and masks.count(name))
    if not names:
        raise ArgumentError("masks must select at least one entry, got none; try a higher density")
    return names


def _masked() -> str:
    return ", ".join(name for name, recipe in _PLAIN.items() if recipe.kind == "masks")
