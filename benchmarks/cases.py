"""The one table of cases. A case is an operator or a loop on a named model, its baselines, and its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks import shapes


@dataclass(frozen=True)
class Contest:
    """What a case runs: ours, the baselines, and the bytes and FLOPs that nobody can do without."""

    ours: dict[str, Callable[[], Any]]
    baselines: dict[str, Callable[[], Any]]
    bytes_moved: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Case:
    """One row of the table.

    name: ``<op>/<model>``.
    op: The operator whose tests must be green before anything is timed; empty for a loop.
    build: Makes the inputs and the contenders.
    bars: Baseline -> the least ratio that the project promises (measured, printed, never asserted).
    quick: Whether pytest-benchmark runs it too.
    """

    name: str
    op: str
    build: Callable[[], Contest]
    bars: dict[str, float] = field(default_factory=dict)
    quick: bool = False


def _weighted_sum(tasks: int, layers: Callable[[], list[tuple[int, ...]]]) -> Callable[[], Contest]:
    def build() -> Contest:
        import torch

        from taskarith_fast import ops

        base, finetuned = shapes.models(layers(), tasks)
        scale = torch.full((tasks,), 0.3)

        def published() -> list[torch.Tensor]:
            """Task vectors one by one, summed, scaled, added: what the papers' TaskVector class does."""
            total = [torch.zeros_like(b) for b in base]
            for model in finetuned:
                total = [t + (f - b) for t, f, b in zip(total, model, base, strict=True)]
            return [b + 0.3 * t for b, t in zip(base, total, strict=True)]

        def foreach() -> list[torch.Tensor]:
            """The same with torch's multi-tensor functions, updating one accumulator in place."""
            total = torch._foreach_mul(base, 1 - 0.3 * tasks)
            for model in finetuned:
                torch._foreach_add_(total, model, alpha=0.3)
            return list(total)

        numel = sum(b.numel() for b in base)
        return Contest(
            ours={"taskarith_fast": lambda: ops.weighted_sum(base, finetuned, scale)},
            baselines={"published recipe (torch)": published, "torch foreach": foreach},
            bytes_moved=4 * numel * (tasks + 2),
        )

    return build


CASES = [
    Case("weighted_sum/vit_b32x8", "weighted_sum", _weighted_sum(8, shapes.vit_b32_shapes)),
    Case("weighted_sum/vit_b32_layer_x8", "weighted_sum", _weighted_sum(8, lambda: [(768, 3072)] * 2), quick=True),
]
