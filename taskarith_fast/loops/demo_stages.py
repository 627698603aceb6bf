"""What each stage of the demo computes, in the order of the job.
 Stages hand on tensors of correctness: ``val/<task>`` and ``test/<task>``, uint8 [points, images], 1 where
the prediction is right; all statistics are made from them afterwards. Encoders are kept as the tensors that
training changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.analysis.cosine import cosine_map
from taskarith_fast.loops.calibrate import calibrate
from taskarith_fast.loops.config import FinetuneConfig, ProbeConfig
from taskarith_fast.loops.evaluate import Evaluation, StateEvaluator, batches_of
from taskarith_fast.loops.features import FeatureCache
from taskarith_fast.loops.finetune import finetune, finetune_joint, new_head
from taskarith_fast.loops.merge import Grid, SearchResult, line_search
from taskarith_fast.loops.negation import search_negation
from taskarith_fast.loops.probe import probe
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.loops.stages import Artefact, Made
from taskarith_fast.masks import Masks
from taskarith_fast.merging import merge
from taskarith_fast.merging.cart_factors import CartFactors
from taskarith_fast.models import Head, load_clip, zero_shot_head
from taskarith_fast.progress import SILENT, Progress
from taskarith_fast.sparse_task_vector import SparseTaskVector

State = dict[str, Tensor]
Evaluations = Mapping[str, Evaluation]
_HEAD = "trained head."


@dataclass
class Workshop:
    """What the stages work on and with."""

    encoder: nn.Module
    """The pre-trained encoder, never changed."""
    tasks: Mapping[str, data.Task]
    progress: Progress = SILENT
    advance: Callable[[float], None] = field(default=lambda images: None)
    """Called with the number of images that went forward through an encoder, as a search goes on."""

    @cached_property
    def base(self) -> State:
        """The pre-trained state on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.encoder.state_dict().items()}

    @cached_property
    def features(self) -> FeatureCache:
        """Features of the pre-trained encoder, shared by the probes."""
        return FeatureCache(self.encoder)

    @cached_property
    def scratch(self) -> nn.Module:
        """A copy of the encoder that evaluations load their states into."""
        return copy.deepcopy(self.encoder)

    def head(self, stored: Mapping[str, Tensor]) -> Head:
        """A frozen head of this state, on the encoder's device."""
        head = Head(stored["weight"], stored.get("bias"), normalize=bool(self.encoder.normalize_features))
        return head.requires_grad_(False).to(device_of(self.encoder))

    def heads(self, inputs: Mapping[str, Artefact]) -> dict[str, Head]:
        """The probes among the inputs, ``probe/<task>``, by task."""
        return {name: self.head(inputs[f"probe/{name}"].tensors) for name in self.tasks}

    def masks(self, packed: Mapping[str, Tensor]) -> Masks:
        """The masks of these bits."""
        return Masks(packed, {name: self.base[name].shape for name in packed})

    def finetuned(self, inputs: Mapping[str, Artefact], task: str) -> State:
        """The encoder fine-tuned on a task, input ``finetune/<task>``, whole and in memory."""
        tensors = inputs[f"finetune/{task}"].tensors
        return {name: tensors.get(name, tensor) for name, tensor in self.base.items()}

    def all_finetuned(self, inputs: Mapping[str, Artefact]) -> list[State]:
        """`finetuned` for every task, in order."""
        return [self.finetuned(inputs, name) for name in self.tasks]

    def evaluator(
        self, heads: Mapping[str, nn.Module], split: str
    ) -> Callable[[Mapping[str, Tensor]], dict[str, Evaluation]]:
        """State -> evaluations of the heads' tasks on one split, counted in the progress."""
        splits = {name: self.tasks[name].splits[split] for name in heads}
        evaluator = StateEvaluator(self.scratch, heads, splits)

        def evaluate(state: Mapping[str, Tensor]) -> dict[str, Evaluation]:
            evaluations = evaluator(state)
            self.advance(sum(len(images) for images in splits.values()))
            return evaluations

        return evaluate


def train_probe(shop: Workshop, inputs: dict[str, Artefact], *, task: str, config: ProbeConfig) -> Made:
    """Train the head of one task on the frozen encoder's features."""
    result = probe(shop.encoder, shop.tasks[task], config, shop.progress, cache=shop.features)
    facts = {"val_accuracy": result.val_accuracy, "c": result.c, "lr": result.lr}
    return facts, result.head.state_dict()


def write_head(shop: Workshop, inputs: dict[str, Artefact], *, task: str, encoder: str) -> Made:
    """The head of one of the papers' tasks, written by the text tower of the CLIP model that the encoder is of."""
    prompts = data.load_prompts(task)
    model = load_clip(encoder).to(device_of(shop.encoder))
    head = zero_shot_head(model, prompts.classes, prompts.templates).cpu()
    return {"val_accuracy": None, "c": None, "lr": None}, head.state_dict()


def draw_head(shop: Workshop, inputs: dict[str, Artefact], *, task: str, seed: int) -> Made:
    """A head of one task that knows nothing yet."""
    head = new_head(shop.encoder, shop.tasks[task], seed)
    return {"val_accuracy": None, "c": None, "lr": None}, head.state_dict()


def take_head(shop: Workshop, inputs: dict[str, Artefact], *, task: str) -> Made:
    """The head that was trained along with an encoder."""
    tensors = inputs[f"finetune/{task}"].tensors
    head = {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items() if name not in shop.base}
    return {"val_accuracy": None, "c": None, "lr": None}, head


def train_encoder(shop: Workshop, inputs: dict[str, Artefact], *, task: str, config: FinetuneConfig) -> Made:
    """Fine-tune the encoder on one task, its head frozen or along; where there are masks, only what they select."""
    head = shop.head(inputs[f"probe/{task}"].tensors)
    masks = shop.masks(inputs["masks"].tensors) if "masks" in inputs else None
    result = finetune(shop.encoder, head, shop.tasks[task], config, shop.progress, masks=masks)
    trained = {name: result.state[name] for name in result.trained}
    facts = {
        "steps": len(result.history["loss"]),
        "loss": _thinned(result.history["loss"]),
        "step_seconds": result.step_seconds,
        "trained": sum(t.numel() for t in trained.values()) if masks is None else masks.count(),
        "vector_bytes": _vector_bytes({name: shop.base[name] for name in trained}, trained, sparse=masks is not None),
    }
    head_state = result.head_state if config.train_head else {}
    return facts, trained | {_HEAD + name: tensor for name, tensor in head_state.items()}


def select_weights(
    shop: Workshop, inputs: dict[str, Artefact], *, task: str, method: str, density: float, rounds: int, seed: int
) -> Made:
    """The masks of a sparse recipe: by sensitivity on the validation images (TaLoS), or by what moved most (LoTA)."""
    head, encoder = shop.head(inputs[f"probe/{task}"].tensors), shop.encoder
    options: dict[str, Any] = {"rounds": rounds, "head": head}
    if method == "lota":
        options = {"finetuned": shop.finetuned(inputs, task)}
    split = shop.tasks[task].splits["val"]
    batches = list(batches_of(encoder, split, batch_size=64, image_size=None, device=device_of(encoder)))
    masks = calibrate(encoder, batches, density=density, method=method, seed=seed, progress=shop.progress, **options)
    return {"selected": masks.count(), "maskable": masks.numel}, {name: masks.packed(name) for name in masks}


def negate(shop: Workshop, inputs: dict[str, Artefact], *, target: str, control: str, scales: Sequence[float]) -> Made:
    """Subtract a task vector as far as the control task allows; before and after on the test images of both."""
    heads = {name: shop.head(inputs[f"probe/{name}"].tensors) for name in (target, control)}
    tau = SparseTaskVector.between(shop.base, shop.finetuned(inputs, target))
    found = search_negation(
        shop.base, tau, shop.evaluator(heads, "val"), target=target, control=control, scales=scales,
        progress=shop.progress,
    )  # fmt: skip
    states = [shop.base, tau.apply(shop.base, scale=-found.best.scale)]
    facts = {"target": target, "control": control, "chosen": {"scale": found.best.scale}}
    return facts, evaluated(shop, heads, states, "test")


def evaluate_base(shop: Workshop, inputs: dict[str, Artefact]) -> Made:
    """The linear probes on the pre-trained encoder."""
    return {}, evaluated(shop, shop.heads(inputs), [shop.base], "val", "test")


def evaluate_individual(shop: Workshop, inputs: dict[str, Artefact]) -> Made:
    """Every fine-tuned encoder on its own task."""
    correct: State = {}
    for name, head in shop.heads(inputs).items():
        correct |= evaluated(shop, {name: head}, [shop.finetuned(inputs, name)], "val", "test")
    return {}, correct


def compare_task_vectors(shop: Workshop, inputs: dict[str, Artefact]) -> Made:
    """Cosines between the task vectors."""
    return {}, {"cosine": cosine_map(shop.base, shop.all_finetuned(inputs))}


def merge_average(shop: Workshop, inputs: dict[str, Artefact]) -> Made:
    """The mean of the fine-tuned encoders."""
    state = merge(shop.base, shop.all_finetuned(inputs), "average")
    return {"chosen": {}}, evaluated(shop, shop.heads(inputs), [state], "val", "test")


def merge_searched(
    shop: Workshop, inputs: dict[str, Artefact], *, method: str, grid: Grid, fixed: Mapping[str, Any]
) -> Made:
    """Merge at every point of a grid, choose on validation images, evaluate the choice on test images."""
    heads, finetuned = shop.heads(inputs), shop.all_finetuned(inputs)
    found = line_search(
        shop.base, finetuned, shop.evaluator(heads, "val"), method, grid, fixed=fixed,
        reference=recorded(inputs["individual"], "val"), progress=shop.progress,
    )  # fmt: skip
    state = merge(shop.base, finetuned, method, **found.parameters)
    return facts_of(found), validated(found) | evaluated(shop, heads, [state], "test")


def merge_cart(
    shop: Workshop, inputs: dict[str, Artefact], *, rank_ratios: Sequence[float], scales: Sequence[float]
) -> Made:
    """CART over rank and scale; test accuracy for every rank at the scale that validation chose."""
    heads, finetuned = shop.heads(inputs), shop.all_finetuned(inputs)
    factors = CartFactors(shop.base, finetuned, max_rank_ratio=max(rank_ratios))
    found = line_search(
        shop.base, finetuned, shop.evaluator(heads, "val"), "cart",
        {"rank_ratio": rank_ratios, "scale": scales}, reference=recorded(inputs["individual"], "val"),
        make_states=lambda points: (factors.merge(**point) for point in points), progress=shop.progress,
    )  # fmt: skip
    chosen = found.parameters["scale"]
    states = (factors.merge(rank_ratio=ratio, scale=chosen) for ratio in sorted(rank_ratios))
    return facts_of(found), validated(found) | evaluated(shop, heads, states, "test")


def train_jointly(shop: Workshop, inputs: dict[str, Artefact], *, config: FinetuneConfig) -> Made:
    """One encoder trained on all tasks at once with the same heads: the bound for merging."""
    heads = shop.heads(inputs)
    result = finetune_joint(shop.encoder, heads, shop.tasks, config, shop.progress)
    return {}, evaluated(shop, heads, [result.state], "test")


def train_from_random_head(shop: Workshop, inputs: dict[str, Artefact], *, task: str, config: FinetuneConfig) -> Made:
    """One task's encoder and a random head trained together, evaluated on that task."""
    result = finetune(shop.encoder, None, shop.tasks[task], config, shop.progress)
    return {}, evaluated(shop, {task: shop.head(result.head_state)}, [result.state], "test")


def _vector_bytes(base: State, trained: State, *, sparse: bool) -> int:
    """What the task vector of a run takes: dense in the trained tensors, or a bit a weight and what moved."""
    if sparse:
        return SparseTaskVector.between(base, trained).nbytes
    return sum(tensor.numel() * tensor.element_size() for tensor in trained.values())


def evaluated(
    shop: Workshop, heads: Mapping[str, nn.Module], states: Iterable[Mapping[str, Tensor]], *splits: str
) -> State:
    """Correctness of several states, ``<split>/<task>`` -> uint8 [states, images]."""
    evaluators = {split: shop.evaluator(heads, split) for split in splits}
    found: dict[str, list[dict[str, Evaluation]]] = {split: [] for split in splits}
    for state in states:
        for split, evaluate in evaluators.items():
            found[split].append(evaluate(state))
    return {name: tensor for split in splits for name, tensor in stacked(split, found[split]).items()}


def stacked(split: str, points: Sequence[Evaluations]) -> State:
    return {
        f"{split}/{name}": torch.stack([point[name].correct for point in points]).to(torch.uint8) for name in points[0]
    }


def validated(found: SearchResult) -> State:
    return stacked("val", [point.evaluations for point in found.points])


def recorded(artefact: Artefact, split: str) -> dict[str, Evaluation]:
    """What `stacked` made of the first point."""
    prefix = f"{split}/"
    names = [name for name in artefact.tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): Evaluation(artefact.tensors[name][0].bool()) for name in names}


def facts_of(found: SearchResult) -> dict[str, Any]:
    return {"chosen": dict(found.parameters), "points": [dict(point.parameters) for point in found.points]}


def _thinned(values: Sequence[float], most: int = 200) -> list[float]:
    """Every n-th value, so that at most `most` are left."""
    return [round(value, 5) for value in values[:: -(-len(values) // most)]]
