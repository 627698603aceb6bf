"""Every operator x backend x dtype x sample against a float64 truth, with opcheck and torch.compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taskarith_fast.errors import ArgumentError, BackendError
from taskarith_fast.ops._contract import _tensors
from tests.ops.cases import all_cases, assert_within_budget, device_of, listed, on_device

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses products as not deterministic
CASES = all_cases()
RUNNABLE = ("reference", "cpu", "cuda", "triton", "cuda_emulated")
GRID = [
    pytest.param(
        case, backend, dtype, sample, id=f"{case.op.name}-{backend}-{str(dtype)[6:]}-{sample}".replace(" ", "_")
    )
    for case in CASES
    for backend in RUNNABLE
    for dtype in case.dtypes
    for sample in case.samples
]
OPS = [pytest.param(case, backend, id=f"{case.op.name}-{backend}") for case in CASES for backend in ("auto", *RUNNABLE)]


def _need(case, backend):
    reason = case.op.absent(backend)
    if reason:
        pytest.skip(f"{case.op.name} on {backend}: {reason}")


def _leaves(args):
    """Detached arguments, floating tensors requiring gradients."""
    if isinstance(args, torch.Tensor):
        return args.detach().clone().requires_grad_(args.is_floating_point())
    return type(args)(_leaves(a) for a in args) if isinstance(args, (list, tuple)) else args


def _dual(x):
    """x with a tangent, where it can have one."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return x
    return torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty holds NaN, so that an output that is never written cannot pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("case", "backend", "dtype", "sample"), GRID)
def test_values_are_within_the_error_budget(case, backend, dtype, sample):
    _need(case, backend)
    args = case.samples[sample](dtype)
    out = [o.cpu() for o in listed(case.op(*on_device(device_of(backend), args), backend=backend))]
    eager, truth = listed(case.op.reference(*args)), listed(case.truth(*args))
    for o, e in zip(out, eager, strict=True):
        assert o.dtype == e.dtype and o.is_contiguous()
    if case.compare:
        case.compare(args, out, eager, truth)
    else:
        assert_within_budget(out, eager, truth)


@pytest.mark.parametrize(("case", "backend"), OPS)
def test_opcheck_passes(case, backend):
    _need(case, backend)
    sample = next(iter(case.samples.values()))
    args = on_device(device_of(backend), sample(torch.float32))
    torch.library.opcheck(case.op.overload(backend), _leaves(args) if case.gradient else args)


@pytest.mark.parametrize(("case", "backend"), OPS)
def test_compiles_without_a_graph_break(case, backend):
    _need(case, backend)
    args = on_device(device_of(backend), next(iter(case.samples.values()))(torch.float32))
    torch._dynamo.reset()  # one limit of recompilations would be shared by all operators
    compiled = torch.compile(lambda *a: case.op(*a, backend=backend), fullgraph=True, backend="aot_eager")
    for a, b in zip(listed(compiled(*args)), listed(case.op(*args, backend=backend)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("case", "backend"), [p for p in OPS if p.values[0].gradient])
def test_gradients_equal_those_of_the_reference(case, backend):
    _need(case, backend)
    sample = next(iter(case.samples.values()))
    grads = []
    for run in (lambda *a: case.op(*a, backend=backend), case.op.reference):
        args = _leaves(on_device(device_of(backend), sample(torch.float32)))
        sum((o.square()).sum() for o in listed(run(*args))).backward()
        grads.append([t.grad for i in case.gradient for t in listed(args[i])])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op.name)
def test_bytes_do_not_depend_on_the_number_of_threads(case):
    _need(case, "cpu")
    threads = torch.get_num_threads()
    try:
        for sample in case.samples.values():
            args, outs = sample(torch.float32), []
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                outs.append(listed(case.op(*args, backend="cpu")))
            for other in outs[1:]:
                for a, b in zip(outs[0], other, strict=True):
                    assert torch.equal(a.view(torch.uint8) if a.dim() else a, b.view(torch.uint8) if b.dim() else b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op.name)
def test_forward_mode_is_refused_not_silently_zero(case):
    args = next(iter(case.samples.values()))(torch.float32)
    if not any(t.is_floating_point() for t in _tensors(args)):
        pytest.skip("no argument can carry a tangent")
    with torch.autograd.forward_ad.dual_level():
        dual = [[_dual(x) for x in a] if isinstance(a, list) else _dual(a) for a in args]
        with pytest.raises(ArgumentError, match="forward-mode"):
            case.op(*dual)


def test_an_absent_backend_says_why():
    op = CASES[0].op
    if op.absent("cuda"):
        with pytest.raises(BackendError, match=r"backend='cuda' .*: "):
            op.overload("cuda")
    with pytest.raises(ArgumentError, match="backend must be one of auto"):
        op.overload("gpu")


def test_works_without_the_native_library(tmp_path):
    code = (
        "import pathlib, torch, taskarith_fast.native as n; n.LIBRARY_DIR = pathlib.Path('nowhere');"
        "import taskarith_fast as ta;"
        "print(ta.ops.weighted_sum([torch.ones(3)], [[torch.full((3,), 3.)]], [.5])[0].tolist())"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    out = subprocess.check_output([sys.executable, "-c", code], text=True, env=env)
    assert out.strip() == "[2.0, 2.0, 2.0]"
