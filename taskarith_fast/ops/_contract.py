"""One operator, one schema, several executions.

``define_op`` registers an operator's schema, shape rule and gradient under one namespace for each way to run it, so
that tests, opcheck and torch.compile treat every execution alike:

* ``taskarith``            the dispatcher's choice: C++ on CPU, CUDA C++ or Triton on GPU, else the reference;
* ``taskarith_reference``  the plain-PyTorch reference, on any device;
* ``taskarith_triton``     the Triton kernel (on CPU tensors only under TRITON_INTERPRET=1);
* ``taskarith_emulated``   the CUDA kernel executed on the CPU (development builds only).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad

from taskarith_fast import native
from taskarith_fast.errors import ArgumentError, BackendError

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton", "cuda_emulated")

_NAMESPACE = {
    "auto": "taskarith",
    "cpu": "taskarith",
    "cuda": "taskarith",
    "reference": "taskarith_reference",
    "triton": "taskarith_triton",
    "cuda_emulated": "taskarith_emulated",
}
_REGISTERED: list[Any] = []
_LIBRARIES = {name: torch.library.Library(name, "FRAGMENT") for name in sorted(set(_NAMESPACE.values()))}


@dataclass(frozen=True)
class Op:
    """A registered operator; calling it validates nothing and runs the backend asked for."""

    name: str
    schema: str
    reference: Callable[..., Any]
    triton: bool
    composed: bool = False

    def overload(self, backend: str = "auto") -> Any:
        """The torch operator that runs `backend`; raises BackendError, with the reason, where it is absent."""
        backend = _forced(backend)
        reason = None if torch.compiler.is_compiling() else self.absent(backend)
        if reason:
            raise BackendError(f"backend={backend!r} cannot run {self.name}: {reason}")
        return getattr(getattr(torch.ops, _NAMESPACE[backend]), self.name).default

    def __call__(self, *args: Any, backend: str = "auto") -> Any:
        _refuse_forward_ad(self.name, args)
        if backend in ("cpu", "cuda") and not torch.compiler.is_compiling():
            devices = {t.device.type for t in _tensors(args)}
            if devices - {backend}:
                raise BackendError(
                    f"backend={backend!r} needs {backend} tensors for {self.name}, got {sorted(devices)}"
                )
        op = self.overload(backend)
        if next(_tensors(args), None) is None:  # lists without a tensor name no device
            op = self.overload("reference")
        return op(*args)

    def absent(self, backend: str) -> str | None:
        """Why `backend` cannot run this operator in this process; None if it can."""
        if backend in ("auto", "reference"):
            return None
        if backend == "triton":
            return _triton_absent() if self.triton else "no Triton kernel is written for it"
        if backend == "cuda" and self.composed:
            return None if torch.cuda.is_available() else "no CUDA device"
        library = {"cpu": "cpu", "cuda": "cuda", "cuda_emulated": "emulated"}[backend]
        reason = load_library(library)
        if reason:
            return reason
        key = "CUDA" if backend == "cuda" else "CPU"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{_NAMESPACE[backend]}::{self.name}", key):
            return "no kernel is written for it"
        return None


def define_op(
    name: str,
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    triton: bool = False,
    composed: Callable[..., Any] | None = None,
) -> Op:
    """Register one operator in every namespace.

    Args:
        name: The operator's stem, the same in every file name.
        schema: Argument and result types, for example ``(Tensor x) -> Tensor``.
        reference: Plain PyTorch, float32 or wider; also the fallback of every device.
        fake: Result shapes and types without data.
        backward: Gradient formula for torch.library.register_autograd; without it the operator is not differentiable.
        setup_context: What to keep for `backward`.
        triton: Whether ``taskarith_fast.kernels.<name>`` has a launcher ``<name>_triton``.
        composed: What CUDA tensors run where torch's own kernels make a better program than the reference.
    """
    for namespace, library in _LIBRARIES.items():
        library.define(name + schema)
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
        if namespace in ("taskarith", "taskarith_reference"):
            library.impl(name, reference, "CompositeExplicitAutograd")
        if backward is not None:
            torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup_context, lib=library)
    if composed is not None:
        _LIBRARIES["taskarith"].impl(name, composed, "CUDA")
    op = Op(name, schema, reference, triton, composed is not None)
    _REGISTERED.append(op)
    if triton:
        launcher = _lazy_launcher(name)
        _LIBRARIES["taskarith_triton"].impl(name, launcher, "CPU")
        _LIBRARIES["taskarith_triton"].impl(name, launcher, "CUDA")
    return op


def load_kernels() -> None:
    """Let CPU tensors run C++, and CUDA tensors Triton where there is no CUDA C++; once all operators are defined."""
    load_library("cpu")
    for op in _REGISTERED:
        if op.triton and not op.composed and _triton_absent() is None and op.absent("cuda"):
            _LIBRARIES["taskarith"].impl(op.name, _lazy_launcher(op.name), "CUDA")


@functools.cache
def load_library(name: str) -> str | None:
    """Load ``libtaskarith_<name>.so`` (``cpu``, ``cuda`` or ``emulated``); why not, in one line, or None."""
    return native.load_library(name, schemas())


def schemas() -> dict[str, str]:
    """Schema of every operator of the package, by name."""
    return {op.name: op.schema for op in registered()}


def registered() -> list[Op]:
    """Every operator of the package, by name."""
    importlib.import_module("taskarith_fast.ops")
    return sorted(_REGISTERED, key=lambda op: op.name)


def _lazy_launcher(name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        module = importlib.import_module(f"taskarith_fast.kernels.{name}")
        return getattr(module, f"{name}_triton")(*args)

    return launch


@functools.cache
def _triton_absent() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return None
    return "no CUDA device (set TRITON_INTERPRET=1 before the start to interpret it on the CPU)"


def _forced(backend: str) -> str:
    if backend not in BACKENDS:
        raise ArgumentError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    forced = os.environ.get("TASKARITH_BACKEND", "auto")
    if forced not in BACKENDS:
        raise ArgumentError(f"TASKARITH_BACKEND must be one of {', '.join(BACKENDS)}; got {forced!r}")
    return forced if backend == "auto" else backend


def _tensors(args: Any) -> Iterator[torch.Tensor]:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)


def _refuse_forward_ad(name: str, args: Any) -> None:
    """Forward-mode AD through a custom operator gives zero tangents silently: refuse it instead."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(t).tangent is not None for t in _tensors(args)):
        raise ArgumentError(f"{name} has no forward-mode derivative; use the dual_* operators or torch.func.vjp")
