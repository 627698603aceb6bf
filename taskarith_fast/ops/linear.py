"""Dense linear layers in exact float32, by the fastest route of the processor.

    y = x W^T + b                                                            # [..., k] -> [..., o]

`torch.nn.functional.linear` hands float32 matrices on the CPU to one BLAS, chosen when torch was built, and
on some processors (AMD with AVX-512 and an MKL build) that BLAS leaves half of the machine unused. The same
product is a 1x1 convolution over a channels-last image of one row, [1, k, 1, n], which torch hands to oneDNN:
views only, no copies, float32 accumulation. Which of the two is faster is measured once a process, in processor
time on one thread, so that a busy machine cannot choose; the rest of the program only ever calls `linear`.

This is a composite function, not a registered operator: autograd, autocast and torch.compile see ordinary
torch calls. Both routes are deterministic, but they round differently; pin one with `set_linear_route` (or
the environment variable TASKARITH_LINEAR) where runs of different processes must agree bit for bit.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from taskarith_fast.errors import ArgumentError

ROUTES = ("auto", "linear", "conv1x1")

# Below these sizes oneDNN's reordering of the weight costs more than its faster kernel gains (measured on Zen
# 5).
_MIN_ROWS = 128
_MIN_MULTIPLICATIONS = 2**23
# A near tie goes to torch's own route, so that noise cannot choose.
_MIN_GAIN = 1.1

_chosen: str | None = None  # None: nothing set by the program, the environment variable decides

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Around = Callable[[Compute, Tensor, Tensor, Tensor | None], Tensor]
_around: Around | None = None  # see around_linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a dense layer, y = x W^T + b, as `torch.nn.functional.linear` does, by the faster route.

    The convolution route is taken for plain, dense float32 CPU tensors of enough work when it was measured to
    be faster. Everything else is F.linear: other devices and dtypes, autocast, compiled or traced code,
    torch.func transforms, forward-mode AD, small layers, empty batches, non-contiguous weights.

    Args:
        x: Input, shape [..., k].
        weight: Weight, shape [o, k].
        bias: Bias, shape [o], or None.

    Returns:
        Output, shape [..., o], dtype and device as F.linear gives.

    Raises:
        RuntimeError: As F.linear, if the shapes do not fit.
    """
    return _compute(x, weight, bias) if _around is None else _around(_compute, x, weight, bias)


@contextmanager
def around_linear(around: Around) -> Iterator[None]:
    """Let `around` stand around every call of `linear` inside a with block, in every thread.

    It is how statistics and sparse gradients see each dense layer of each model: its input, its weight (the
    parameter itself, or a view of it) and its output, whatever module the layer is part of.

    Args:
        around: Called as ``around(compute, x, weight, bias)``; returns the output, ``compute(x, weight, bias)``
            or what should stand for it. Blocks nest: `compute` then is the outer block's.
    """
    global _around
    before = _around
    outer: Compute = _compute if before is None else functools.partial(before, _compute)
    _around = lambda _, x, weight, bias: around(outer, x, weight, bias)  # noqa: E731
    try:
        yield
    finally:
        _around = before


def add_linear_(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y += x W^T in place, by the route of `linear`; y is [n, o] and x [n, k]. No sum is formed beside y."""
    plain = _around is None and y.dtype == x.dtype == weight.dtype and not _takes_conv1x1(x, weight)
    return y.addmm_(x, weight.t()) if plain else y.add_(linear(x, weight))


def _compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _conv1x1(x, weight, bias) if _takes_conv1x1(x, weight, bias) else F.linear(x, weight, bias)


def _takes_conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return not torch.compiler.is_compiling() and _fits(x, weight, bias) and _wants_conv1x1(x, weight)


def _wants_conv1x1(x: Tensor, weight: Tensor) -> bool:
    route = requested_linear_route()
    return (_auto_route(x.numel() // x.shape[-1], weight) if route == "auto" else route) == "conv1x1"


def linear_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor, by_x: bool, by_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of a dense layer by its input and its weight, by the route that `linear` takes for the layer.

    Args:
        grad: Gradient by the output, shape [..., o].
        x: Input, shape [..., k]; None if no gradient by the weight is asked for.
        weight: Weight, shape [o, k].
        by_x: Return the gradient by the input.
        by_weight: Return the gradient by the weight.

    Returns:
        grad_x, shape [..., k], and grad_weight, shape [o, k]; None where not asked for.
    """
    if not by_weight or x is None:
        return (_by_input(grad, weight) if by_x else None), None
    rows = grad.reshape(-1, grad.shape[-1])
    if _takes_conv1x1(x, weight):
        images = [t.reshape(1, 1, -1, t.shape[-1]).permute(0, 3, 1, 2) for t in (rows, x)]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            *images, weight[:, :, None, None], None, [1, 1], [0, 0], [2, 1], False, [0, 0], 1, [by_x, True, False]
        )
        grad_x = grad_x.permute(0, 2, 3, 1).reshape(x.shape) if by_x else None
        return grad_x, grad_weight.reshape(weight.shape)
    return (rows @ weight).reshape(x.shape) if by_x else None, rows.t() @ x.reshape(-1, x.shape[-1])


def _by_input(grad: Tensor, weight: Tensor) -> Tensor:
    """grad W. A transposed copy of the weight, as the convolution needs it, does not pay for few rows."""
    plain = grad.numel() > 0 and _is_plain(grad) and _is_plain(weight)
    return linear(grad, weight.t().contiguous()) if plain and _wants_conv1x1(grad, weight) else grad @ weight


def set_linear_route(route: str | None) -> None:
    """Choose the route of `linear` for this process.

    Args:
        route: "auto" (measure once), "linear" (always F.linear), "conv1x1" (the convolution for every float32
            CPU layer, however small), or None to return to the environment variable TASKARITH_LINEAR, "auto"
            if unset.

    Raises:
        ArgumentError: If the route has another name.
    """
    global _chosen
    _chosen = None if route is None else _checked(route, "route")


@contextmanager
def linear_route(route: str) -> Iterator[None]:
    """Choose the route of `linear` inside a with block; arguments and errors as `set_linear_route`."""
    global _chosen
    before = _chosen
    set_linear_route(route)
    try:
        yield
    finally:
        _chosen = before


def requested_linear_route() -> str:
    """Return the route asked for: "auto", "linear" or "conv1x1".

    Raises:
        ArgumentError: If TASKARITH_LINEAR holds another word.
    """
    return _chosen or _checked(os.environ.get("TASKARITH_LINEAR") or "auto", "TASKARITH_LINEAR")


def resolved_linear_route() -> str:
    """Return the route of large float32 CPU layers, "linear" or "conv1x1"; measures (< 50 ms) if need be."""
    route = requested_linear_route()
    return measured_linear_route() if route == "auto" else route


@functools.cache
def measured_linear_route() -> str:
    """Return the faster route of this processor, by the passes of one 512 x 384 x 384 layer."""
    if not torch.backends.mkldnn.is_available():
        return "linear"
    best = measure_linear_routes()
    return "conv1x1" if best["conv1x1"] * _MIN_GAIN < best["linear"] else "linear"


def measure_linear_routes(rows: int = 512, width: int = 384, seconds: float = 0.03) -> dict[str, float]:
    """Time the forward and backward pass of one layer on one thread by both routes, interleaved, for about `seconds`.

    Args:
        rows: Rows of the input.
        width: Input and output features.
        seconds: Time to spend; at least three passes of each route are made.

    Returns:
        Seconds of processor time of the fastest pass, for "linear" and "conv1x1".
    """
    routes = {"linear": F.linear, "conv1x1": _conv1x1}
    best = dict.fromkeys(routes, float("inf"))
    # Constant inputs: the global random number generator must not notice that a measurement took place.
    with torch.inference_mode(False), torch.enable_grad(), _one_thread():
        x, weight = (torch.ones(n, width, device="cpu").float().requires_grad_() for n in (rows, width))
        for route in routes.values():  # builds oneDNN's kernels
            _seconds_of_a_pass(route, x, weight)
        deadline = time.perf_counter() + seconds
        rounds = 0
        while rounds < 3 or time.perf_counter() < deadline:
            best = {name: min(best[name], _seconds_of_a_pass(route, x, weight)) for name, route in routes.items()}
            rounds += 1
    return best


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds_of_a_pass(route: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    start = time.thread_time()
    y = route(x, weight)
    torch.autograd.grad(y, (x, weight), y.detach())
    return time.thread_time() - start


def _auto_route(rows: int, weight: Tensor) -> str:
    if rows < _MIN_ROWS or rows * weight.numel() < _MIN_MULTIPLICATIONS or not torch.backends.mkldnn.enabled:
        return "linear"
    return measured_linear_route()


def _conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    o, k = weight.shape
    image = x.reshape(1, 1, -1, k).permute(0, 3, 1, 2)  # [1, k, 1, n], channels last
    # The dilation acts on an axis of length one, so it changes nothing but torch's choice: with one thread an
    # undilated 1x1 convolution is sent back to the BLAS that this route avoids.
    y = F.conv2d(image, weight.view(o, k, 1, 1), bias, dilation=(2, 1))
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], o)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether the convolution may stand in for F.linear, apart from the question of speed."""
    return (
        _is_plain(x)
        and _is_plain(weight)
        and (bias is None or (_is_plain(bias) and bias.shape == weight.shape[:1]))
        and weight.dim() == 2
        and weight.is_contiguous()
        and weight.numel() > 0
        and x.numel() > 0
        and x.shape[-1:] == weight.shape[1:]
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not _is_transformed()
    )


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )


def _is_transformed() -> bool:
    """Tell whether a torch.func transform or forward-mode AD is active: F.linear is the tested road there."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _checked(route: str, name: str) -> str:
    if route not in ROUTES:
        raise ArgumentError(f"{name} must be one of {', '.join(ROUTES)}, got {route!r}")
    return route
