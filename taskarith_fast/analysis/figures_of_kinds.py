"""Which figures each analysis has, and all of them as files, for light pages and for dark ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.figure import Figure

from taskarith_fast.analysis import figures_lines as lines
from taskarith_fast.analysis import figures_maps as maps
from taskarith_fast.analysis.figures_theme import png, themed

Arrays = Mapping[str, np.ndarray]

FIGURES: dict[str, dict[str, Callable[[Arrays], Figure | dict[str, Figure]]]] = {
    "disentanglement": {"": maps.disentanglement_map},
    "cosine": {"": maps.cosine_map_figure},
    "localization": {"": maps.ratio_map},
    "mask_share": {"": maps.density_map, "-budget": maps.budget_map},
    "mask_iou": {"": maps.iou_map},
    "prune": {"": maps.ratio_map},
    "perturb": {"": maps.ratio_map},
    "sensitivity_drift": {"": maps.drift_map},
    "landscape": {"": maps.landscape_map, "-": maps.landscapes_by_task},
    "rank_sweep": {"": lines.rank_figure, "-tasks": lines.rank_by_task},
    "routing": {"": lines.rank_figure, "-tasks": lines.rank_by_task},
    "task_count": {"": lines.task_count_figure, "-normalized": lines.normalized_task_count_figure},
    "lambda_curve": {"": lines.lambda_figure, "-normalized": lines.normalized_lambda_figure},
    "radar": {"": lines.radar_figure},
}


def figures(kind: str, arrays: Arrays, *, theme: str = "light") -> dict[str, bytes]:
    """The figures of an analysis as PNG, by file name without suffix.

    Args:
        kind: A name of ``analysis_kinds()``.
        arrays: What it found, as its ``.npz`` file has it.
        theme: "light" or "dark".
    """
    found: dict[str, bytes] = {}
    with themed(theme):
        for suffix, draw in FIGURES[kind].items():
            drawn = draw(arrays)
            for name, figure in (drawn if isinstance(drawn, dict) else {"": drawn}).items():
                found[f"{kind}{suffix}{_safe(name)}"] = png(figure)
    return found


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
