"""What a probe and a fine-tuning run are told: frozen, checked when made, saved beside every result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.loops.recipes import RECIPES, check_steps_in_backward
from taskarith_fast.loops.runtime import PRECISIONS
from taskarith_fast.loops.schedule import SCHEDULES

SOLVERS = ("lbfgs", "adamw")
LOSSES = ("cross_entropy", "likelihood")
CLIP_OVER = ("selected", "all")
LORA_SCALINGS = ("alpha", "alpha_over_rank")
SHARDINGS = ("none", "fsdp")


@dataclass(frozen=True)
class ProbeConfig:
    """Linear probing: a linear head on features of the frozen encoder, computed once."""

    solver: str = "adamw"
    """"adamw" trains as the paper does; "lbfgs" solves L2-regularised logistic regression to its optimum."""
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    """Grid of peak learning rates for adamw; the one with the best validation accuracy is kept."""
    steps: int = 2000
    """Optimizer steps of adamw, for every learning rate."""
    batch_size: int | None = 128
    """Images a step of adamw; None takes all of them at every step."""
    warmup: int = 200
    """Steps of linear warm-up before the cosine decay of adamw."""
    weight_decay: float = 0.1
    """Decoupled decay of adamw; the paper gives none for the head, this is its value for the encoder."""
    cs: tuple[float, ...] = (0.02,)
    """Grid of C for lbfgs: inverse strength of the L2 penalty, as scikit-learn counts it."""
    standardize: bool = True
    """lbfgs penalises the weights of features scaled to zero mean and unit variance."""
    max_iterations: int = 500
    """Most iterations of lbfgs for one C."""
    tolerance: float = 1e-5
    """lbfgs stops when no entry of the gradient of the mean loss exceeds this."""
    seed: int = 0
    """Seed of the random head and of the order of the images."""
    feature_batch_size: int = 128
    """Images a forward pass while features are computed; no effect on the result but rounding."""
    image_size: int | None = None
    """Side of the images in pixels; None takes the encoder's."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N"."""
    threads: int | None = None
    """CPU threads; None leaves torch's number."""

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, SOLVERS)
        for name in ("lrs", "cs"):
            object.__setattr__(self, name, _positive_grid(name, getattr(self, name)))
        _check_at_least(self, 1, "steps", "batch_size", "max_iterations", "feature_batch_size", "image_size", "threads")
        _check_at_least(self, 0, "warmup", "weight_decay", "tolerance")


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning an encoder by AdamW; the defaults are the papers'."""

    steps: int = 2000
    """Optimizer steps; without effect if `epochs` is given."""
    epochs: float | None = None
    """Passes over the training split, in place of `steps`."""
    batch_size: int = 128
    """Images a forward and backward pass."""
    accumulation: int = 1
    """Passes whose mean gradient makes one optimizer step."""
    lr: float = 1e-5
    """Peak learning rate of the encoder."""
    head_lr: float | None = None
    """Peak learning rate of the head where it is trained too; None takes `lr`."""
    weight_decay: float = 0.1
    """Decoupled decay toward zero of every trainable tensor, norms and biases too."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    warmup: int = 200
    """Steps of linear warm-up."""
    schedule: str = "cosine"
    """"cosine", "linear" or "constant" after the warm-up."""
    clip: float | None = 1.0
    """Largest norm of the whole gradient; None does not clip."""
    clip_over: str | None = None
    """What that norm counts where only masked entries are trained: "selected" entries, or "all" entries of the
    trained tensors, as TaLoS's code does; None takes the recipe's."""
    step_in_backward: bool = False
    """Where masked entries are trained: step each weight in the backward pass, as soon as its gradient is there, and
    free the gradient. The least memory; there is no norm of all gradients, so `clip` must be None."""
    loss: str = "cross_entropy"
    """"cross_entropy" over the classes or choices, or "likelihood": minus the log-probability of the right answer, for
    models that answer, as sequence-to-sequence models are trained."""
    label_smoothing: float = 0.0
    """Share of the target probability spread evenly over the classes."""
    recipe: str = "full"
    """What of the encoder is trained, a name of `recipes.RECIPES`."""
    lora_rank: int = 16
    """Rank r of the updates of the recipe "lora"."""
    lora_alpha: float = 32.0
    """Factor alpha of those updates."""
    lora_scaling: str = "alpha"
    """"alpha" multiplies them by alpha, as TaLoS's code does; "alpha_over_rank" by alpha / r, as the LoRA paper."""
    train_head: bool = False
    """Train the head along with the encoder (the papers' full fine-tuning), or leave it as it is."""
    augment: bool = False
    """Random shifts of the training images, by up to a fourteenth of their side."""
    seed: int = 0
    """Seed of the order of the images, of the augmentation, and of a head made here."""
    image_size: int | None = None
    """Side of the images in pixels; None takes the encoder's."""
    precision: str = "float32"
    """"float32", or "bfloat16": matrix products under autocast, weights and optimizer state in float32."""
    checkpoint_activations: bool = False
    """Keep only the inputs of the transformer blocks and compute the rest again in the backward pass."""
    checkpoint_every: int = 100
    """Steps between the checkpoints of a run that is given a place for them; no effect on the result."""
    snapshots: tuple[int, ...] = ()
    """Steps after which the result keeps a copy of the state, for curves over training."""
    sharding: str = "none"
    """Under torchrun: "none" keeps all weights in every process, "fsdp" cuts weights, gradients and state."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N"."""
    threads: int | None = None
    """CPU threads; None leaves torch's number."""

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("loss", self.loss, LOSSES)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("recipe", self.recipe, tuple(RECIPES))
        check_choice("lora_scaling", self.lora_scaling, LORA_SCALINGS)
        check_choice("sharding", self.sharding, SHARDINGS)
        if self.clip_over is not None:
            check_choice("clip_over", self.clip_over, CLIP_OVER)
        _check_at_least(self, 1, "steps", "batch_size", "accumulation", "image_size", "threads")
        _check_at_least(self, 1, "lora_rank", "checkpoint_every")
        _check_at_least(self, 0, "warmup", "weight_decay", "lr", "head_lr", "epochs", "clip", "lora_alpha")
        if not 0 <= self.label_smoothing < 1:
            raise ArgumentError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.step_in_backward:
            check_steps_in_backward(self)
        object.__setattr__(self, "snapshots", tuple(self.snapshots))
        for name in ("epochs", "clip"):
            if getattr(self, name) == 0:
                raise ArgumentError(f"{name} must be positive or None, got 0")

    def total_steps(self, images: int) -> int:
        """Optimizer steps of a run over a training split of `images` images; at least one."""
        if self.epochs is None:
            return self.steps
        batches = -(-images // self.batch_size)
        return max(1, int(self.epochs * batches) // self.accumulation)


def describe(config: Any) -> dict[str, Any]:
    """The resolved configuration as plain values, for JSON."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}


def _check_at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        # Written so that NaN is refused too.
        if value is not None and not value >= least:
            raise ArgumentError(f"{name} must be at least {least}, got {value}")


def _positive_grid(name: str, values: Sequence[float]) -> tuple[float, ...]:
    grid = tuple(sorted(float(v) for v in values))
    if not grid or not all(v > 0 for v in grid):
        raise ArgumentError(f"{name} must hold at least one positive number, got {list(values)}")
    return grid


PROBE_PRESETS = {
    "paper": ProbeConfig(),
    # Strongly regularised: a head that already fits its training images leaves the encoder nothing to learn from.
    "demo": ProbeConfig(solver="lbfgs", cs=(0.002,)),
}
"""Linear probing by name: as Hazimeh et al. 2024 describe it, and as the demo runs it."""

_PAPER = FinetuneConfig()
# AdamW's first steps have full size whatever the gradient: without a warm-up they throw the encoder far off.
_DEMO = FinetuneConfig(epochs=4, batch_size=32, lr=5e-5, warmup=8, schedule="linear")

FINETUNE_PRESETS = {
    "paper": _PAPER,
    "code": dataclasses.replace(_PAPER, warmup=500),
    # TaLoS's for T5, texts cut to 128 tokens; its early stopping is not here.
    "paper_t5": dataclasses.replace(
        _PAPER,
        steps=75_000,
        accumulation=8,
        lr=1e-4,
        weight_decay=0.0,
        clip=None,
        loss="likelihood",
        precision="bfloat16",
    ),
    "demo": _DEMO,
    "demo_qkvo": dataclasses.replace(_DEMO, lr=1e-4, recipe="qkvo"),
    "demo_talos": dataclasses.replace(_DEMO, lr=1e-3, recipe="talos"),
    "demo_lora": dataclasses.replace(_DEMO, lr=1e-3, recipe="lora"),
    "demo_lota": dataclasses.replace(_DEMO, lr=2e-4, recipe="lota"),
    "demo_linearized": dataclasses.replace(_DEMO, lr=5e-5, recipe="linearized"),
}
"""Fine-tuning by name: the papers' text, their code (another warm-up), TaLoS's for T5, the demo's recipes."""
