"""Analyses of CART that need models and images: sweeps over ranks, merged or routed, and the loss on a plane."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from taskarith_fast import data
from taskarith_fast.analysis.edits import check_grid, mean_by_task, single
from taskarith_fast.analysis.landscape import Landscape, landscape, loss, losses
from taskarith_fast.analysis.plane import Plane, combinations, principal_plane
from taskarith_fast.analysis.rank_curves import ORDERS, ORIGINS, RankCurves, check_rank_arguments, rank_curves
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.edits import EncoderEdits
from taskarith_fast.loops.evaluate import StateEvaluator
from taskarith_fast.loops.merged_edits import StateEdits
from taskarith_fast.merging.cart_blocks import check_scale
from taskarith_fast.merging.cart_spectrum import CartSpectrum
from taskarith_fast.progress import SILENT, Progress

State = Mapping[str, Tensor]

RANK_RATIOS = (0.0, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.24, 0.32, 0.48, 0.64, 0.8, 1.0)
"""Ranks over full rank, dense where CART's curve bends."""


def rank_sweep(
    encoder: nn.Module,
    base: State,
    finetuned: Sequence[State],
    splits: Mapping[str, data.Split],
    heads: Mapping[str, nn.Module],
    *,
    rank_ratios: Sequence[float] = RANK_RATIOS,
    origins: Sequence[str] = ORIGINS,
    orders: Sequence[str] = ORDERS,
    scale: float = 1.0,
    base_scale: float = 0.3,
    routed: bool = False,
    svd: str = "certified",
    progress: Progress = SILENT,
    **options: Any,
) -> RankCurves:
    """Accuracy of CART's merged models, or of its routed ones, along the rank; one decomposition an origin.

    Args:
        encoder: As for `StateEvaluator`.
        base: The pre-trained state.
        finetuned: T fine-tuned states; for routed models the t-th belongs to task t.
        splits, heads: Task name -> images, head.
        rank_ratios, origins, orders: As for `analysis.rank_curves`.
        scale: lambda around the average.
        base_scale: lambda around the pre-trained model.
        routed: Judge one model a task, each on its own task.
        svd: As in `cart`.
        progress: Shows bars.
        options: As for `StateEvaluator`.

    Raises:
        ArgumentError: If an argument is out of its domain.
        CheckpointError: If the models do not fit together.
    """
    grid = check_rank_arguments(rank_ratios, origins, orders)
    for value in (scale, base_scale):
        check_scale(value)
    if routed and len(finetuned) != len(splits):
        raise ArgumentError(f"finetuned must hold one model a task, got {len(finetuned)} for {len(splits)} tasks")
    evaluators = {name: StateEvaluator(encoder, heads, {name: split}, **options) for name, split in splits.items()}
    together = StateEvaluator(encoder, heads, splits, **options)
    top = 1.0 if "smallest" in orders else max(float(grid[-1]), 1e-6)

    @functools.lru_cache(maxsize=1)
    def spectrum(origin: str) -> CartSpectrum:
        return CartSpectrum(base, finetuned, origin=origin, max_rank_ratio=top, svd=svd, progress=progress)

    def judge(origin: str, order: str, rank_ratio: float) -> list[np.ndarray]:
        chosen: dict[str, Any] = {"rank_ratio": rank_ratio, "order": order}
        chosen["scale"] = scale if origin == "average" else base_scale
        if not routed:
            return [e.correct.numpy() for e in together(spectrum(origin).state(**chosen)).values()]
        states = (spectrum(origin).state(task=t, **chosen) for t in range(len(finetuned)))
        return [evaluators[name](state)[name].correct.numpy() for name, state in zip(splits, states, strict=True)]

    counts = [len(split) for split in splits.values()]
    return rank_curves(judge, counts, rank_ratios=grid.tolist(), origins=origins, orders=orders, progress=progress)


@dataclass(frozen=True, eq=False)
class CartLandscape:
    """The loss on the plane of the models and of CART's way from rank 0 to full rank."""

    surface: Landscape
    plane: Plane
    names: tuple[str, ...]
    """What the plane's first models are: the base, the fine-tuned ones; the ranks follow."""
    rank_ratio: np.ndarray
    """Ranks over full rank, [R]; rank 0 and full rank are both the average."""
    rank_losses: np.ndarray
    """Loss of CART's models themselves, not at their places on the plane, on each image, task by task, [R, sum N_v]."""
    rank_loss: np.ndarray
    """Its means, [R, V]."""
    images: np.ndarray
    """Images of each task N_v, int64 [V]."""
    scale: np.ndarray
    """Scales of task arithmetic, [S]."""
    scale_coordinates: np.ndarray
    """Projections of base + scale sum_t tau_t, [S, 2]."""
    scale_loss: np.ndarray
    """Loss of those models, [S, V]."""


def cart_landscape(
    encoder: nn.Module,
    base: State,
    finetuned: Sequence[State],
    splits: Mapping[str, data.Split],
    heads: Mapping[str, nn.Module],
    *,
    rank_ratios: Sequence[float] = RANK_RATIOS,
    scale: float = 1.0,
    scales: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    points: int = 20,
    margin: float = 0.25,
    svd: str = "certified",
    progress: Progress = SILENT,
    **options: Any,
) -> CartLandscape:
    """Loss of all tasks on the plane of the first two principal components of base, models and CART's ranks.

    Args:
        encoder: As for `EncoderEdits`.
        base, finetuned: The pre-trained state and T >= 1 fine-tuned ones.
        splits, heads: Task name -> images, head.
        rank_ratios: CART's ranks over full rank, in [0, 1].
        scale: CART's lambda.
        scales: Scales of task arithmetic, whose way is drawn beside CART's.
        points, margin: As for `analysis.landscape`.
        svd: As in `cart`.
        progress: Shows bars.
        options: As for `EncoderEdits`.

    Raises:
        ArgumentError: If an argument is out of its domain, or the models are on one line.
        CheckpointError: If the models do not fit together.
    """
    grid = check_rank_arguments(rank_ratios, ["average"], ["largest"])
    ways = check_grid("scales", scales)
    check_scale(scale)
    if points < 2 or not 0 <= margin < 10:
        raise ArgumentError(f"points must be at least 2 and margin in [0, 10), got {points} and {margin}")
    top = max(float(grid[-1]), 1e-6)
    spectrum = CartSpectrum(base, finetuned, max_rank_ratio=top, svd=svd, progress=progress)
    ranks = [spectrum.state(rank_ratio=ratio, scale=scale) for ratio in grid.tolist()]
    states = [base, *finetuned, *ranks]
    plane = principal_plane(states, progress=progress)
    radius = float(np.abs(plane.coordinates).max())
    corners = combinations(states, plane.weights(np.array([[0, 0], [radius, 0], [0, radius]])), progress=progress)
    edits = EncoderEdits(encoder, corners[0], corners[1:], splits, heads, **options)
    surface = landscape(edits, plane, points=points, margin=margin, radius=radius, progress=progress)
    del edits, corners
    along = np.zeros((len(ways), len(states)))
    along[:, 1 : 1 + len(finetuned)] = ways[:, None]
    along[:, 0] = 1 - along.sum(1)
    sums = EncoderEdits(encoder, base, finetuned, splits, heads, **options)
    listed = StateEdits(encoder, ranks, splits, heads, **options)
    with progress.stage("ways", len(ways) + len(ranks)) as bar:
        scale_loss, rank_losses = [], []
        for way in ways:
            scale_loss.append([loss(sums, (way,) * len(finetuned), task) for task in splits])
            bar.advance()
        for r in range(len(ranks)):
            point = single(len(ranks), r)
            rank_losses.append(np.concatenate([losses(listed, point, task) for task in splits]))
            bar.advance()
    names = ("base", *(f"finetuned {t + 1}" for t in range(len(finetuned))))
    found, images = np.array(rank_losses), np.array([len(split) for split in splits.values()], dtype=np.int64)
    return CartLandscape(
        surface, plane, names, grid, found, mean_by_task(found, images), images, ways, plane.project(along),
        np.array(scale_loss),
    )  # fmt: skip
