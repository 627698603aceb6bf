"""What ties_merge is measured against: the published recipe in torch, and careful NumPy on two threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 14  # floats: the temporaries of eight tasks fit into the second-level cache


def published_ties(
    base: Sequence[Tensor], finetuned: Sequence[Sequence[Tensor]], density: float, scale: float
) -> Tensor:
    """The authors' steps: flatten, kthvalue, mask, sign of the sum, mean of what agrees. Flat result."""
    flat = torch.cat([b.reshape(-1) for b in base])
    deltas = torch.vstack([torch.cat([f.reshape(-1) for f in task]) for task in finetuned]) - flat
    size = deltas.shape[1]
    magnitudes = deltas.abs()
    limits, _ = magnitudes.kthvalue(size - int(size * density), dim=1, keepdim=True)
    trimmed = deltas * (magnitudes >= limits)
    signs = torch.sign(trimmed.sum(0))
    signs[signs == 0] = torch.sign(signs.sum())
    agreeing = torch.where(signs.unsqueeze(0) > 0, trimmed > 0, trimmed < 0)
    chosen = trimmed * agreeing
    counts = (chosen != 0).sum(0).float()
    return flat + scale * (chosen.sum(0) / torch.clamp(counts, min=1))


def numpy_ties(start: np.ndarray, models: Sequence[np.ndarray], density: float, scale: float) -> np.ndarray:
    """Partition for thresholds, election in cache-sized blocks, two threads; flat arrays in and out."""
    out = np.empty_like(start)
    middle = start.size // 2
    with ThreadPoolExecutor(2) as pool:
        limits = np.array(list(pool.map(lambda model: _threshold(start, model, density), models)), np.float32)
        halves = [(0, middle), (middle, start.size)]
        list(pool.map(lambda half: _merge(start, models, limits, np.float32(scale), out, *half), halves))
    return out


def _threshold(base: np.ndarray, model: np.ndarray, density: float) -> np.float32:
    magnitude = np.subtract(model, base)
    np.abs(magnitude, out=magnitude)
    rank = base.size - max(1, int(density * base.size))
    magnitude.partition(rank)
    return magnitude[rank]


def _merge(
    base: np.ndarray,
    models: list[np.ndarray],
    limits: np.ndarray,
    scale: np.float32,
    out: np.ndarray,
    begin: int,
    end: int,
) -> None:
    shape = (len(models), _BLOCK)
    deltas, work, mask = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, bool)
    for i in range(begin, end, _BLOCK):
        n = min(_BLOCK, end - i)
        d, w, m = deltas[:, :n], work[:, :n], mask[:, :n]
        for t, model in enumerate(models):
            np.subtract(model[i : i + n], base[i : i + n], out=d[t])
        np.abs(d, out=w)
        np.greater_equal(w, limits[:, None], out=m)
        np.multiply(d, m, out=d)
        np.multiply(d, d.sum(0), out=w)
        np.greater(w, 0, out=m)
        np.multiply(d, m, out=d)
        mean = d.sum(0)
        mean /= np.maximum(m.sum(0, dtype=np.int8), 1)
        mean *= scale
        np.add(base[i : i + n], mean, out=out[i : i + n])
