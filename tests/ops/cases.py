"""The table that tests/ops/test_contract.py runs: for each operator its samples and its float64 truth.

A new operator adds ``case_<op>.py`` with a ``CASE``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class OpCase:
    """How to test one operator.

    op: The operator as define_op returned it.
    samples: Name -> function of the dtype that makes the operator's raw arguments, the same ones at each call.
    truth: The exact result, from the same arguments, in float64: a list of tensors.
    compare: Called as compare(args, out, eager, truth); the error budget by default.
    dtypes: Storage types that the operator takes.
    gradient: Indices of the arguments to differentiate by; empty if the operator has no gradient.
    """

    op: Any
    samples: dict[str, Callable[[torch.dtype], tuple[Any, ...]]]
    truth: Callable[..., list[Tensor]]
    compare: Callable[..., None] | None = None
    dtypes: tuple[torch.dtype, ...] = DTYPES
    gradient: tuple[int, ...] = field(default=())


@dataclass(frozen=True)
class InPlace:
    """An in-place operator as a function: it works on copies and gives back the tensors that it changed.

    op: The operator as define_op returned it.
    changed: Indices of the arguments that it changes, tensors or lists of them.
    """

    op: Any
    changed: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        return self.op.name

    @property
    def composed(self) -> bool:
        return self.op.composed

    def absent(self, backend: str) -> str | None:
        return self.op.absent(backend)

    def overload(self, backend: str) -> Any:
        return self.op.overload(backend)

    def reference(self, *args: Any) -> list[Tensor]:
        return self._on_copies(self.op.reference, args)

    def __call__(self, *args: Any, backend: str = "auto") -> list[Tensor]:
        return self._on_copies(lambda *a: self.op(*a, backend=backend), args)

    def _on_copies(self, run: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
        copies = [_cloned(a) if i in self.changed and a is not None else a for i, a in enumerate(args)]
        run(*copies)
        return [x for i in self.changed if copies[i] is not None for x in listed(copies[i])]


def _cloned(argument: Any) -> Any:
    return argument.clone() if isinstance(argument, Tensor) else [x.clone() for x in argument]


def device_of(backend: str) -> str:
    """Where the tensors of a test of `backend` live: Triton kernels run on the GPU unless they are interpreted."""
    compiled = backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1"
    return "cuda" if backend == "cuda" or compiled else "cpu"


def on_device(device: str, args: Any) -> Any:
    """The same arguments with every tensor on `device`."""
    if isinstance(args, Tensor):
        return args.to(device)
    return type(args)(on_device(device, a) for a in args) if isinstance(args, (list, tuple)) else args


def all_cases() -> list[OpCase]:
    files = sorted(Path(__file__).parent.glob("case_*.py"))
    return [importlib.import_module(f"tests.ops.{f.stem}").CASE for f in files]


def listed(out: Any) -> list[Tensor]:
    """An operator's result as a list of tensors."""
    return [out] if isinstance(out, Tensor) else list(out)


def assert_within_budget(out: list[Tensor], eager: list[Tensor], truth: list[Tensor]) -> None:
    """|truth - kernel| <= |truth - eager| + one rounding of the output's type, element by element."""
    assert len(out) == len(truth)
    for i, (o, e, t) in enumerate(zip(out, eager, truth, strict=True)):
        assert o.shape == t.shape, f"output {i}: shape {list(o.shape)}, truth {list(t.shape)}"
        if o.numel() == 0:
            continue
        info = torch.finfo(o.dtype)
        allowed = (t - e.double()).abs() + info.eps * t.abs() + info.smallest_normal * info.eps
        excess = (t - o.double()).abs() - allowed
        assert not torch.isnan(o).any(), f"output {i}: NaN"
        worst = int(excess.argmax())
        assert excess.max() <= 0, f"output {i}, element {worst}: {o.flatten()[worst]} for {t.flatten()[worst]}"


def assert_within_roundings(out: Tensor, eager: Tensor, truth: Tensor, magnitude: Tensor) -> None:
    """|truth - kernel| <= |truth - eager| + 4 roundings of `magnitude`, the sum of the absolute products.

    A sum of n float32 products is within n such roundings in any order; torch's own worst on ops.linear's shapes is
    2.5. The plain budget would ask the kernel for torch's luck, element by element.
    """
    assert out.shape == truth.shape and not torch.isnan(out).any()
    excess = (truth - out.double()).abs() - (truth - eager.double()).abs()
    excess -= 4 * torch.finfo(torch.float32).eps * magnitude
    worst = int(excess.argmax()) if out.numel() else -1
    assert worst < 0 or excess.max() <= 0, f"element {worst}: {out.flatten()[worst]} for {truth.flatten()[worst]}"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_lists(
    shapes: list[tuple[int, ...]], tasks: int, dtype: torch.dtype, seed: int = 0, spread: float = 1e-2
) -> tuple[list[Tensor], list[Tensor]]:
    """base [L] and finetuned [T * L], task-major, with small random deltas."""
    g = generator(seed)
    base = [torch.randn(s, generator=g) for s in shapes]
    finetuned = [(b + spread * torch.randn(b.shape, generator=g)).to(dtype) for _ in range(tasks) for b in base]
    return [b.to(dtype) for b in base], finetuned
