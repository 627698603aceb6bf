"""Every table and figure that can be reproduced: its protocol, the paper's encoder, and its statement in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from taskarith_fast.analysis.outcome import Outcome
from taskarith_fast.loops.reproduce import curves, encoders, heads, language, maps, tables
from taskarith_fast.loops.reproduce.tables import Better


@dataclass(frozen=True)
class Entry:
    """One row."""

    run: Callable[..., Outcome]
    """A `Protocol`; with an axis, of the benches of all encoders by name."""
    claim: str
    """What the paper says, in our words; empty where it makes no statement that has a direction."""
    encoder: str = "open_clip:ViT-B-32/openai"
    """What the paper ran it on; where it has several, one of them."""
    heads: str = "zero_shot"
    """Its heads: "zero_shot" or "probe"."""
    axis: str = ""
    """What its encoders differ in, a key of `encoders.AXES`, where it compares several, with probed heads."""


_FULL, _NTK = ("full", "task_arithmetic"), ("linearized", "task_arithmetic")
_TALOS, _QKVO, _BASE = ("talos", "task_arithmetic"), ("qkvo", "task_arithmetic"), ("", "probe")
_MERGES = [("full", m) for m in ("ties", "consensus", "dare", "breadcrumbs")]
_CART_ROWS = [
    _BASE, ("full", "individual"), ("full", "joint"),
    *(("full", m) for m in ("average", "fisher", "regmean", "task_arithmetic", "ties", "cart",
                            "adamerging", "adamerging_plus_plus", "cart_plus_plus")),
]  # fmt: skip
_CART = partial(
    tables.addition,
    places=_CART_ROWS,
    by_task=True,
    extra_rows=True,
    more={"full": ("fisher", "regmean", "adamerging", "adamerging_plus_plus", "cart_plus_plus")},
    better=[
        Better(("full", "cart"), ("full", "ties")),
        Better(("full", "cart"), _FULL),
        Better(("full", "cart"), ("full", "average")),
        Better(("full", "cart_plus_plus"), ("full", "adamerging")),
    ],
)
_CART_CLAIM = "CART is above every method without test-time adaptation, CART++ above AdaMerging."
_COST_RECIPES = ("full", "linearized", "lora", "lota", "talos")
_LANDSCAPE_CLAIM = "Along the rank CART passes through lower loss than the average, to which both ends of the way lead."
_TASK_WISE = "adamerging_task_wise"

_COUNTS = partial(curves.task_counts, methods={"task_arithmetic": {"scales": [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]}})
_COUNTS_CLAIM = "Normalised accuracy falls as tasks are added."
_PRETRAINED = "Weight disentanglement is a general consequence of pre-training."


def _along_scale(axis: str) -> Entry:
    run = partial(encoders.overlaid, protocol=curves.scales, curve=curves.along_scales, label="scale")
    return Entry(run, f"Some lambda is above lambda = 0, for every pre-trained encoder. {_PRETRAINED}", axis=axis)


def _along_counts(axis: str) -> Entry:
    run = partial(encoders.overlaid, protocol=_COUNTS, curve=partial(curves.along_counts, **_COUNTS.keywords),
                  label="tasks merged")  # fmt: skip
    return Entry(run, f"{_COUNTS_CLAIM} {_PRETRAINED}", axis=axis)


ENTRIES: dict[str, Entry] = {
    "cart/table1": Entry(_CART, _CART_CLAIM),
    "cart/table2": Entry(_CART, _CART_CLAIM, "open_clip:ViT-L-14/openai"),
    "cart/figure1": Entry(
        partial(curves.ranks, origins=("average", "base")),
        "Around the average, accuracy along the rank is a bell, best near 8 %; around the pre-trained model it rises.",
    ),
    "cart/figure2": Entry(
        partial(curves.ranks, origins=("average", "base"), orders=("largest", "smallest")),
        "What helps is in the strongest singular vectors: in reverse order the curve stays below.",
    ),
    "cart/figure3": Entry(
        partial(curves.ranks, kind="routing", orders=("largest", "smallest")),
        "With the task known too, few of the strongest singular vectors are enough; in reverse order they are not.",
    ),
    "cart/figure4": Entry(maps.landscape, _LANDSCAPE_CLAIM),
    "cart/figure5": Entry(partial(curves.ranks, by_task=True), "The bell shows task by task."),
    "cart/figure6": Entry(
        partial(curves.task_counts, methods={
            "task_arithmetic": {"scales": [0.3]},
            "cart": {"scales": [1.0], "method_parameters": {"rank_ratio": 0.08}},
        }),
        "CART loses less than task arithmetic as tasks are added.",
    ),
    "cart/figure7": Entry(maps.landscape, _LANDSCAPE_CLAIM),
    "cart/figure8": Entry(maps.landscape, _LANDSCAPE_CLAIM),
    "hazimeh/table1": Entry(
        partial(encoders.side_by_side, protocol=tables.probing, adds_up=True),
        "Task addition is 2 to 3 points above linear probing (for DINO it is not). Weight disentanglement is a general "
        "consequence of pre-training.",
        axis="all",
    ),
    "hazimeh/table2": Entry(encoders.checkpoints, "", axis="all"),
    "hazimeh/table3": Entry(
        heads.from_random_heads,
        "Fine-tuned together with random heads, models add up worse (CLIP: 47 % in task addition).",
        "open_clip:ViT-B-16/laion2b_s34b_b88k", "probe",
    ),
    "hazimeh/table4": Entry(
        partial(heads.head_too, recipes=("", "full", "head_too")),
        "With CLIP's zero-shot head kept, models add up better than with the head fine-tuned too.",
        "open_clip:ViT-B-16/laion2b_s34b_b88k",
    ),
    "hazimeh/figure1": Entry(
        partial(encoders.side_by_side, protocol=partial(
            maps.disentanglement, recipes=["full"], reach=3.0, points=20, less=[])),
        "Closed-vocabulary encoders are disentangled near the pre-trained weights.",
        axis="pre-training",
    ),
    "hazimeh/figure2": _along_scale("pre-training"),
    "hazimeh/figure3": _along_scale("data"),
    "hazimeh/figure4": _along_scale("size"),
    "hazimeh/figure5": Entry(
        heads.full_fine_tuning, "Fine-tuned together with random heads, models add up worse.",
        "timm:vit_base_patch16_224.augreg_in21k", "probe",
    ),
    "hazimeh/figure6": Entry(_COUNTS, _COUNTS_CLAIM, "timm:vit_base_patch16_224.augreg_in21k", "probe"),
    "hazimeh/figure7": _along_counts("pre-training"),
    "hazimeh/figure8": _along_counts("data"),
    "hazimeh/figure9": _along_counts("size"),
    "jin/table1": Entry(
        partial(tables.addition, places=[_BASE, _FULL, _NTK, _QKVO],
                better=[Better(_QKVO, _FULL), Better(_QKVO, _NTK), Better(_NTK, _FULL), Better(_QKVO, _FULL, "norm")]),
        "Fine-tuning QKVO matrices only is above linearized fine-tuning, which is above full fine-tuning.",
    ),
    "jin/table2": Entry(
        partial(tables.addition, places=[(r, "task_arithmetic") for r in ("qkvo", "p2", "p3", "p4")], single=True,
                better=[Better(_QKVO, (r, "task_arithmetic")) for r in ("p2", "p3", "p4")]),
        "QKVO weights alone are the best of the four sets.",
    ),
    "jin/figure3": Entry(
        partial(curves.single_tasks, recipes=("full", "linearized", "qkvo"), above=[("qkvo", "linearized")]),
        "On single tasks QKVO is near full fine-tuning and above linearized fine-tuning.",
    ),
    "jin/figure4": Entry(
        partial(maps.disentanglement, recipes=("full", "linearized", "qkvo"), reach=2.0, points=15,
                distances=("prediction", "representation"), less=[("qkvo", "full")]),
        "QKVO is more disentangled than full fine-tuning.",
    ),
    "jin/figure5": Entry(
        partial(maps.cosines, recipes=("full", "linearized", "qkvo")),
        "Task vectors of QKVO are closer to orthogonal than those of full fine-tuning.",
    ),
    "jin/figure6": Entry(
        partial(curves.single_tasks, recipes=("full", "linearized", "qkvo"), above=[("qkvo", "linearized")]),
        "As figure 3, task by task.",
    ),
    "jin/figure7": Entry(
        partial(maps.disentanglement, recipes=("full", "linearized", "qkvo"), reach=2.0, points=15, pair=(1, 2),
                distances=("prediction", "representation"), less=[("qkvo", "full")]),
        "As figure 4, for another pair of tasks.",
    ),
    "talos/table1": Entry(
        partial(language.beside, protocol=partial(tables.addition,
                places=[_BASE, _FULL, _NTK, *_MERGES, ("lora", "task_arithmetic"), ("lota", "task_arithmetic"), _TALOS],
                more={"full": ("consensus", "dare", "breadcrumbs")},
                better=[Better(_TALOS, _FULL), Better(_TALOS, ("full", "ties")), Better(_TALOS, _NTK),
                        Better(_TALOS, ("lota", "task_arithmetic")), Better(_TALOS, _FULL, "norm")])),
        "TaLoS is above every other method, most of all in normalised accuracy.",
    ),
    "talos/table2": Entry(
        partial(language.beside, protocol=partial(
            tables.negation, recipes=["", "full", "linearized", None, None, None, None, "lora", "lota", "talos"])),
        "TaLoS and linearized fine-tuning forget far more than full fine-tuning under the same control.",
    ),
    "talos/table3": Entry(
        partial(tables.iteration_cost, recipes=_COST_RECIPES), "An iteration of TaLoS is the fastest and leanest."
    ),
    "talos/table4": Entry(
        partial(tables.stage_cost, recipes=_COST_RECIPES),
        "Selecting weights costs little: masks and training together take TaLoS the least time.",
        "open_clip:ViT-L-14/openai",
    ),
    "talos/table5": Entry(
        partial(tables.addition,
                places=[_BASE, _FULL, ("full", "ties"), ("full", _TASK_WISE), ("full", "adamerging"), _TALOS,
                        ("talos", "ties"), ("talos", _TASK_WISE), ("talos", "adamerging")],
                more={"full": (_TASK_WISE, "adamerging"), "talos": ("ties", _TASK_WISE, "adamerging")},
                better=[Better(("talos", "adamerging"), ("full", "adamerging")), Better(_TALOS, ("talos", "ties")),
                        Better(("talos", "adamerging"), _TALOS)]),
        "AdaMerging helps TaLoS, trimming by TIES hurts it.",
    ),
    "talos/figure1": Entry(
        partial(maps.insensitive, kind="prune"),
        "The least sensitive tenth of the weights of one task matters little to any task.",
    ),
    "talos/figure2": Entry(
        partial(maps.disentanglement, recipes=("full", "linearized", "talos"), reach=3.0, points=20,
                less=[("linearized", "full"), ("talos", "full"), ("talos", "linearized")]),
        "TaLoS is more disentangled than linearized, and that more than full fine-tuning.",
    ),
    "talos/figure3": Entry(
        partial(maps.localization, recipes=("full", "linearized", "talos")),
        "Task vectors of TaLoS act on their own task and leave the others alone.",
    ),
    "talos/figure4": Entry(partial(maps.mask_shares, recipe="talos"), ""),
    "talos/figure5": Entry(partial(maps.mask_shares, recipe="lota"), ""),
    "talos/figure6": Entry(
        partial(curves.post_hoc, recipes=("full", "talos")), "TaLoS loses less than full fine-tuning when linearized."
    ),
    "talos/figure7": Entry(curves.sensitivity, "Under TaLoS the sensitivity hardly changes in training."),
    "talos/figure8": Entry(curves.densities, "Accuracy is best near 90 % sparsity."),
    "talos/figure9": Entry(partial(curves.single_tasks, recipes=_COST_RECIPES, above=[]), ""),
    "talos/figure10": Entry(
        partial(maps.insensitive, kind="perturb"), "Noise on the least sensitive weights of one task disturbs no task."
    ),
    "talos/figure11": Entry(maps.mask_overlap, "The masks of different tasks overlap: IoU above 0.7 for ViT-B/32."),
}  # fmt: skip
