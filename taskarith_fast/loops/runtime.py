"""Where a loop runs: device, threads, precision."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from taskarith_fast.errors import ArgumentError, BackendError

PRECISIONS = ("float32", "bfloat16")


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ArgumentError: If torch does not know the name.
        BackendError: If CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device {name!r} is not available: torch {torch.__version__} sees no CUDA device; use cpu")
    return device


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first parameter, the CPU if it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads inside the block; None leaves the number alone."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Compute matrix products in `precision`; weights, gradients and optimizer state stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def return_freed_memory() -> None:
    """Let the C library give freed blocks of 128 KB and more back to the system, until the process ends.

    By default glibc keeps freed blocks of up to 32 MB for later ones, whose sizes may not fit: a process then takes
    up to twice what its tensors do. It costs some time, so it is for runs with a limit. Elsewhere it does nothing.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 17)
