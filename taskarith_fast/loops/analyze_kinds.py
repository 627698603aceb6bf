"""Every analysis as a function of `Inputs` and its own parameters; the table of them is in `loops.analyze`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from taskarith_fast import analysis
from taskarith_fast.analysis.rank_curves import ORDERS, ORIGINS
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.analyze_cart import RANK_RATIOS, cart_landscape, rank_sweep
from taskarith_fast.loops.analyze_inputs import Inputs, State, is_vector
from taskarith_fast.loops.evaluate import StateEvaluator, batches_of, load_state
from taskarith_fast.loops.merge import SCALES
from taskarith_fast.loops.sensitivity import sensitivity_change


def disentanglement(
    inputs: Inputs, *, low: float = -3.0, high: float = 3.0, points: int = 20, distance: str = "prediction",
    pair: Sequence[int] = (0, 1), scales_1: Sequence[float] = (), scales_2: Sequence[float] = (),
) -> analysis.Disentanglement:  # fmt: skip
    """Weight disentanglement error of a pair of tasks on a grid: n x n points from low to high, or any two lists."""
    if points < 1 or not low <= high:
        raise ArgumentError(f"points must be at least 1 and low at most high, got {points} and {low}, {high}")
    grid = np.linspace(low, high, points).tolist()
    return analysis.disentanglement_error(
        inputs.edits(), scales=scales_1 or grid, scales_2=scales_2 or scales_1 or grid, distance=distance,
        pair=tuple(pair), progress=inputs.progress,
    )  # fmt: skip


def cosine(inputs: Inputs) -> dict[str, Any]:
    """Cosines between task vectors."""
    if any(is_vector(v) for v in inputs.vectors):
        deltas = inputs.deltas()
        zeros = {name: delta.new_zeros(()).expand(delta.shape) for name, delta in deltas[0].items()}
        return {"cosine": analysis.cosine_map(zeros, deltas, progress=inputs.progress)}
    return {"cosine": analysis.cosine_map(inputs.theta_0, inputs.vectors, progress=inputs.progress)}


def localization(inputs: Inputs, *, scale: float = 1.0) -> analysis.AccuracyRatios:
    """Accuracy of each task vector alone on every task, relative to the base."""
    return analysis.localization(inputs.edits(), scale=scale, progress=inputs.progress)


def lambda_curve(
    inputs: Inputs, *, scales: Sequence[float] = SCALES, method: str = "task_arithmetic",
    method_parameters: Mapping[str, Any] = {},
) -> analysis.LambdaCurve:  # fmt: skip
    """Accuracy of the merged model along the scale."""
    edits = inputs.merged_edits(method, method_parameters)
    return analysis.lambda_curve(edits, scales=scales, progress=inputs.progress)


def task_count(
    inputs: Inputs, *, scales: Sequence[float] = (0.3,), sizes: Sequence[int] = (), method: str = "task_arithmetic",
    method_parameters: Mapping[str, Any] = {},
) -> analysis.TaskCount:  # fmt: skip
    """Accuracy of the merges of all subsets of the tasks; several scales are chosen among on validation images."""
    validation = inputs.merged_edits(method, method_parameters, "val") if len(scales) > 1 else None
    return analysis.task_count(
        inputs.merged_edits(method, method_parameters), scales=scales, sizes=sizes or None, validation=validation,
        progress=inputs.progress,
    )  # fmt: skip


def radar(inputs: Inputs, *, recipes: Sequence[str] = ("single task",)) -> analysis.Radar:
    """Single-task accuracy of each recipe's models, which come one recipe after the other."""
    tasks = len(inputs.tasks)
    if len(inputs.vectors) != tasks * len(recipes) or len(set(recipes)) < len(recipes):
        models = len(inputs.vectors)
        raise ArgumentError(f"recipes must be different names, one for {tasks} of {models} models, got {list(recipes)}")
    groups = [inputs.vectors[i * tasks : (i + 1) * tasks] for i in range(len(recipes))]
    edits = {name: inputs.edits(vectors=group) for name, group in zip(recipes, groups, strict=True)}
    return analysis.radar(edits, progress=inputs.progress)


def cart_ranks(
    inputs: Inputs, *, rank_ratios: Sequence[float] = RANK_RATIOS, origins: Sequence[str] = ORIGINS,
    orders: Sequence[str] = ORDERS, scale: float = 1.0, base_scale: float = 0.3, svd: str = "certified",
) -> analysis.RankCurves:  # fmt: skip
    """Accuracy of CART along the rank, around the average and around the base, in both orders."""
    return _ranks(inputs, routed=False, rank_ratios=rank_ratios, origins=origins, orders=orders, scale=scale,
                  base_scale=base_scale, svd=svd)  # fmt: skip


def routing(
    inputs: Inputs, *, rank_ratios: Sequence[float] = RANK_RATIOS, origins: Sequence[str] = ORIGINS,
    orders: Sequence[str] = ORDERS, scale: float = 1.0, base_scale: float = 1.0, svd: str = "certified",
) -> analysis.RankCurves:  # fmt: skip
    """Accuracy of CART's models with the task known, along the rank, each on its own task."""
    return _ranks(inputs, routed=True, rank_ratios=rank_ratios, origins=origins, orders=orders, scale=scale,
                  base_scale=base_scale, svd=svd)  # fmt: skip


def landscape(
    inputs: Inputs, *, points: int = 20, margin: float = 0.25, rank_ratios: Sequence[float] = RANK_RATIOS,
    scale: float = 1.0, scales: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0), svd: str = "certified",
) -> dict[str, Any]:  # fmt: skip
    """Loss on the models' principal plane, with CART's way along the rank and task arithmetic's along the scale."""
    found = cart_landscape(
        inputs.its_encoder, inputs.theta_0, inputs.states(), inputs.splits(), inputs.heads, points=points,
        margin=margin, rank_ratios=rank_ratios, scale=scale, scales=scales, svd=svd, progress=inputs.progress,
        **inputs.options,
    )  # fmt: skip
    own = {name: value for name, value in vars(found).items() if name not in ("surface", "plane", "names")}
    return {**vars(found.surface), **vars(found.plane), **own}


def sensitivity_drift(inputs: Inputs, *, labels: str = "sampled", target: str = "logprob") -> dict[str, Any]:
    """How far per-image gradients move from the base to each model, on every task, over their size at the base."""
    encoder, states = inputs.copied_encoder(), inputs.states()
    load_state(encoder, inputs.theta_0)
    found = [
        sensitivity_change(
            encoder, batches_of(encoder, split, image_size=None, **inputs.options), states, head=inputs.heads[name],
            labels=labels, target=target, seed=inputs.seed, progress=inputs.progress,
        )
        for name, split in inputs.splits().items()
    ]  # fmt: skip
    change, start = np.array([f.change for f in found]).T, np.array([f.start for f in found])
    return {"change": change, "start": start, "relative": change / start}


def mask_share(inputs: Inputs, *, split_qkv: bool = True) -> dict[str, Any]:
    """Share of the selected weights by type of layer and depth, for each of the masks."""
    rows = [analysis.mask_share(masks, split_qkv=split_qkv) for masks in inputs.masks.values()]
    for name, row in zip(inputs.masks, rows, strict=True):
        if row.kind.tolist() != rows[0].kind.tolist() or (row.numel != rows[0].numel).any():
            raise ArgumentError(f"masks must be of the same tensors, but {name} and {next(iter(inputs.masks))} differ")
    stacked = {field: np.stack([getattr(row, field) for row in rows]) for field in ("selected", "density", "share")}
    return {"kind": rows[0].kind, "depth": rows[0].depth, "numel": rows[0].numel, **stacked}


def mask_iou(inputs: Inputs, *, average: str = "tensor", classes: str = "selected") -> dict[str, Any]:
    """Overlap of every two masks."""
    return {"iou": analysis.mask_iou(list(inputs.masks.values()), average=average, classes=classes)}


def prune(inputs: Inputs) -> analysis.AccuracyRatios:
    """Accuracy after the weights that each of the masks selects are set to 0, relative to before."""
    base = inputs.theta_0
    return _changed(inputs, (analysis.pruned(base, masks) for masks in inputs.masks.values()))


def perturb(
    inputs: Inputs, *, factor: float = 2.0, spread: str = "deviation", scope: str = "global", noise_seed: int = 0
) -> analysis.AccuracyRatios:
    """Accuracy after noise is added to the weights that each of the masks selects, relative to before."""
    options: dict[str, Any] = {"factor": factor, "spread": spread, "scope": scope, "seed": noise_seed}
    base = inputs.theta_0
    return _changed(inputs, (analysis.perturbed(base, masks, **options) for masks in inputs.masks.values()))


def _ranks(inputs: Inputs, **options: Any) -> analysis.RankCurves:
    return rank_sweep(
        inputs.copied_encoder(), inputs.theta_0, inputs.states(), inputs.splits(), inputs.heads,
        progress=inputs.progress, **options, **inputs.options,
    )  # fmt: skip


def _changed(inputs: Inputs, changes: Iterator[State]) -> analysis.AccuracyRatios:
    splits = inputs.splits()
    evaluator = StateEvaluator(inputs.copied_encoder(), inputs.heads, splits, **inputs.options)
    found = []
    with inputs.progress.stage("masks", 1 + len(inputs.masks)) as bar:
        for change in itertools.chain([{}], changes):
            answers = evaluator({**inputs.theta_0, **change}).values()
            found.append(np.concatenate([e.correct.numpy() for e in answers]))
            bar.advance()
    images = np.array([len(split) for split in splits.values()], dtype=np.int64)
    return analysis.AccuracyRatios(np.stack(found[1:]), found[0], images)
