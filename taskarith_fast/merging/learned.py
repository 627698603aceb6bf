"""Methods that learn their coefficients from unlabelled images: their parameters, one frozen dataclass each.

`loops.adamerge` runs them. Their rows stand beside those of the other methods, so that one table names them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from taskarith_fast.errors import ArgumentError
from taskarith_fast.merging.coefficients import CoefficientMerge, DeltaMerge, LowRankMerge
from taskarith_fast.merging.common import State, check_fraction
from taskarith_fast.merging.ties import agreeing_models
from taskarith_fast.ops.truncated_svd import check_method


@dataclass(frozen=True, kw_only=True)
class AdaMerging:
    """``theta_0 + sum_t c[t, l] tau_t`` with learned c (Yang 2024, eq. 7); the defaults are the paper's."""

    task_wise: bool = False
    """One coefficient a task instead of one a task and tensor."""
    start: float = 0.3
    """Every coefficient before the first step."""
    lr: float = 1e-3
    """Learning rate of Adam, betas .9 and .999, no decay."""
    steps: int = 500
    """Updates of the coefficients; 0 leaves them at `start`."""
    batches_per_step: int = 1
    """Batches of each task an update; 1 in the paper, 2 in the published code."""
    clamp: bool = True
    """Use ``min(max(c, 0), 1)``: a coefficient that has left [0, 1] has no gradient."""
    seed: int = 0
    """Seed of torch's global generator, which a DataLoader shuffles by; it is put back afterwards."""

    def __post_init__(self) -> None:
        _check_types(self)
        if not math.isfinite(self.start):
            raise ArgumentError(f"start must be finite, got {self.start}")
        if self.clamp and not 0 <= self.start <= 1:
            raise ArgumentError(f"start must be in [0, 1] while clamp is on, got {self.start}; pass clamp=False")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ArgumentError(f"lr must be above 0 and finite, got {self.lr}")
        if self.steps < 0:
            raise ArgumentError(f"steps must not be negative, got {self.steps}")
        if self.batches_per_step < 1:
            raise ArgumentError(f"batches_per_step must be at least 1, got {self.batches_per_step}")

    def prepare(self, base: State, finetuned: Sequence[State]) -> CoefficientMerge:
        """The merge as a function of its coefficients."""
        return DeltaMerge(base, finetuned)

    def used(self, coefficients: Tensor) -> Tensor:
        """The coefficients that the merge takes, of those that Adam moves."""
        return coefficients.clamp(0, 1) if self.clamp else coefficients

    def open(self, coefficients: Tensor) -> Tensor:
        """d used / d coefficients: 1, or 0 where the clamp holds a coefficient at the edge of [0, 1]."""
        inside = (coefficients >= 0) & (coefficients <= 1) if self.clamp else coefficients == coefficients
        return inside.to(coefficients.dtype)


@dataclass(frozen=True, kw_only=True)
class AdaMergingPlusPlus(AdaMerging):
    """AdaMerging of what TIES leaves of each task vector (Yang 2024, "AdaMerging++")."""

    ties_density: float = 0.2
    """Fraction kept of each task vector before the signs are elected, in (0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("ties_density", self.ties_density)

    def prepare(self, base: State, finetuned: Sequence[State]) -> CoefficientMerge:
        """The merge as a function of its coefficients; it holds T models of its own."""
        return DeltaMerge(base, agreeing_models(base, finetuned, density=self.ties_density))


@dataclass(frozen=True, kw_only=True)
class CartPlusPlus(AdaMerging):
    """``theta_avg + sum_t c[t, l] SVD_r(theta_t - theta_avg)`` with learned c (Choi et al. 2024, eq. 6)."""

    start: float = 1.0
    """Every coefficient before the first step: CART's scale."""
    clamp: bool = False
    """As for AdaMerging; off, because `start` is at the edge of [0, 1] and CART's best scales are above it."""
    rank_ratio: float = 0.08
    """Rank kept, ``r = max(1, int(rank_ratio min(m, n)))``, in (0, 1]."""
    svd: str = "certified"
    """"certified" or "exact", see `ops.truncated_svd`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("rank_ratio", self.rank_ratio)
        check_method(self.svd)

    def prepare(self, base: State, finetuned: Sequence[State]) -> CoefficientMerge:
        """The merge as a function of its coefficients; it holds the average and the factors, not the models."""
        return LowRankMerge(base, finetuned, rank_ratio=self.rank_ratio, svd=self.svd)


def _check_types(settings: AdaMerging) -> None:
    """Refuse a value of another type than its default; a command line can bring any."""
    for f in fields(settings):
        value, kind = getattr(settings, f.name), type(f.default)
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or isinstance(value, bool) != (kind is bool):
            raise ArgumentError(f"{f.name} must be {kind.__name__} such as {f.default}, got {value!r}")
