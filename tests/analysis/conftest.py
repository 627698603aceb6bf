"""An invented results document, to draw and print from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from taskarith_fast.analysis import results as schema

METHODS = (
    ("", "probe", "Linear probe", False, 0.68),
    ("full", "individual", "Individually fine-tuned", False, 0.79),
    ("full", "average", "Average", True, 0.69),
    ("full", "task_arithmetic", "Task arithmetic", True, 0.69),
    ("full", "ties", "TIES", True, 0.695),
    ("full", "cart", "CART", True, 0.74),
)
TASKS = ("fashion", "digits", "animals", "clip_art", "emoji", "devanagari", "textile")


def invented_results(seeds: tuple[int, ...] = (0,)) -> schema.Results:
    """A document with every part filled; the numbers mean nothing."""
    random = np.random.default_rng(0)
    return schema.Results(
        schema_version=schema.SCHEMA_VERSION,
        preset="default",
        config={"recipes": {"full": {"lr": 5e-5, "epochs": 4, "steps": 2000}}},
        recipes={"full": "all encoder weights fine-tuned"},
        seeds=list(seeds),
        encoder={"encoder": "an invented one"},
        versions={"taskarith_fast": "0.0", "torch": "0.0"},
        machine={"processor": "an invented one", "cores": "2"},
        tasks=[_task(name) for name in TASKS],
        rows=[_row(*method, seeds=seeds, random=random) for method in METHODS],
        curves=schema.Curves(
            scale=[_scale_curve(m, label) for _, m, label, *_ in METHODS[3:5]], cart_rank=[_rank_curve()]
        ),
        cosine=[_cosine(random)],
        costs=[
            schema.Cost(
                recipe="full",
                trained=15_000_000,
                forward_backward=0.2,
                step=0.01,
                peak_rss_mb=1200.0,
                vector_bytes=6e7,
            )
        ],
        negation=[_negation(target, control) for target, control in itertools.pairwise(TASKS)],
        linearity=[_linearity(task) for task in TASKS],
        sensitivity=[schema.SensitivityCurve(recipe="full", task=TASKS[0], step=[0, 10, 20], change=[0.0, 0.2, 0.5])],
        timing=[
            schema.StageTime(
                group=g,
                stage=f"{g} {i}",
                seconds=12.3 * (i + 1),
                peak_rss_mb=900 + 10 * i,
                peak_gpu_mb=None,
                reused=i == 0,
            )
            for g in ("Linear probes", "Fine-tuning", "Merging and evaluation")
            for i in range(2)
        ],
    )


def _task(name: str) -> schema.TaskFacts:
    source = "Debian package dataset-fashion-mnist, images of clothes by Zalando Research"
    return schema.TaskFacts(name=name, classes=10, train=600, val=200, test=400, licence="MIT", source=source)


def _row(recipe: str, method: str, label: str, merged: bool, mean: float, *, seeds, random) -> schema.Row:
    accuracy = dict(zip(TASKS, np.clip(mean + random.normal(0, 0.12, len(TASKS)), 0.2, 0.98), strict=True))
    return schema.Row(
        recipe=recipe,
        method=method,
        label=label,
        merged=merged,
        hyperparameters=[{"scale": 0.3} if merged and method != "average" else {} for _ in seeds],
        accuracy={t: schema.Measured(value=a, stderr=0.024) for t, a in accuracy.items()},
        mean=schema.Measured(value=float(np.mean(list(accuracy.values()))), stderr=0.009),
        normalized={t: schema.Measured(value=a / 0.8, stderr=0.02) for t, a in accuracy.items()},
        normalized_mean=schema.Measured(value=mean / 0.8, stderr=0.01),
        over_probe=schema.Measured(value=mean - 0.68, stderr=0.006),
        seed_std=0.004 if len(seeds) > 1 and recipe else None,
    )


def _scale_curve(method: str, label: str) -> schema.ScaleCurve:
    scale = [round(0.05 * i, 2) for i in range(21)]
    score = [0.86 + 0.1 * s * (0.5 if method == "ties" else 0.2) - 0.3 * s * s for s in scale]
    return schema.ScaleCurve(
        recipe="full", method=method, label=label, scale=scale, val_mean=[0.8 * s for s in score],
        val_normalized=score, val_stderr=[0.01] * 21, chosen=[scale[int(np.argmax(score))]],
    )  # fmt: skip


def _negation(target: str, control: str) -> schema.Negation:
    high, low = schema.Measured(value=0.8, stderr=0.02), schema.Measured(value=0.3, stderr=0.02)
    return schema.Negation(
        recipe="full", target=target, control=control, scale=[0.4],
        target_before=high, target_after=low, control_before=high, control_after=high,
    )  # fmt: skip


def _linearity(task: str) -> schema.Linearity:
    measured = [schema.Measured(value=value, stderr=0.02) for value in (0.8, 0.7, -0.1)]
    return schema.Linearity(
        recipe="full", task=task, ordinary=measured[0], linearized=measured[1], difference=measured[2]
    )


def _rank_curve() -> schema.RankCurve:
    ratios, scales = [0.02, 0.04, 0.08, 0.16, 0.32, 1.0], [1.0, 1.5, 2.0, 2.5, 3.0]
    grid = [[0.87 + 0.03 * s * r**0.3 - 0.09 * s * r for s in scales] for r in ratios]
    best = np.unravel_index(np.argmax(grid), (len(ratios), len(scales)))
    test = [0.8 * line[best[1]] for line in grid]
    return schema.RankCurve(
        recipe="full", rank_ratio=ratios, scale=scales, val_mean=grid, val_normalized=grid,
        chosen_rank_ratio=[ratios[best[0]]], chosen_scale=[scales[best[1]]],
        test_mean=test, test_stderr=[0.009] * 6,
    )  # fmt: skip


def _cosine(random: np.random.Generator) -> schema.CosineMap:
    matrix = random.uniform(0.02, 0.15, (len(TASKS), len(TASKS)))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    return schema.CosineMap(recipe="full", names=list(TASKS), matrix=matrix.tolist())


@pytest.fixture
def results() -> schema.Results:
    return invented_results()
