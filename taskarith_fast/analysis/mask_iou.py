r"""How much the masks of two tasks overlap (TaLoS 2025, figure 11).

    IoU(A, B) = |A and B| / |A or B|, and 1 where both are empty

The paper's "mean IoU for each parameter" is read as the mean over tensors; whether it is also one over the two classes
selected and not selected is not stated. All four readings are to be had.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.masks import Masks

AVERAGES = ("tensor", "global")
CLASSES = ("selected", "both")


def mask_iou(masks: Sequence[Masks], *, average: str = "tensor", classes: str = "selected") -> np.ndarray:
    """Overlap of every two of T masks, from their bits: one AND a pair.

    Args:
        masks: T masks of the same tensors.
        average: "tensor" takes the mean over tensors of their IoU; "global" the IoU over all entries at once.
        classes: "selected" is the IoU of what is True; "both" the mean of that and of the IoU of what is False.

    Returns:
        Shape [T, T], float64, symmetric, in [0, 1], 1 on the diagonal.

    Raises:
        ArgumentError: If names or shapes differ.
    """
    check_choice("average", average, AVERAGES)
    check_choice("classes", classes, CLASSES)
    for t, other in enumerate(masks[1:], start=1):
        if {n: other.shape(n) for n in other} != {n: masks[0].shape(n) for n in masks[0]}:
            raise ArgumentError(f"masks must be of the same tensors, but masks[{t}] and masks[0] differ")
    found = np.eye(len(masks))
    if not masks or not len(masks[0]):
        return np.ones_like(found)
    names = list(masks[0])
    total = np.array([math.prod(masks[0].shape(name)) for name in names])
    counts = [np.array([m.count(name) for name in names]) for m in masks]
    for s, t in itertools.combinations(range(len(masks)), 2):
        both = masks[s] & masks[t]
        inner = np.array([both.count(name) for name in names])
        terms = [inner, counts[s] + counts[t] - inner, total]
        if average == "global":
            terms = [term.sum(keepdims=True) for term in terms]
        found[s, t] = found[t, s] = _iou(*terms, classes=classes).mean()
    return found


def _iou(inner: np.ndarray, outer: np.ndarray, total: np.ndarray, *, classes: str) -> np.ndarray:
    selected = _ratio(inner, outer)
    return selected if classes == "selected" else (selected + _ratio(total - outer, total - inner)) / 2


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(b > 0, a / np.maximum(b, 1), 1.0)
