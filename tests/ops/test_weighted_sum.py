"""weighted_sum beyond the contract's samples: many tasks and tensors, alignment, cancellation, errors."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taskarith_fast import ops
from taskarith_fast.errors import ArgumentError
from taskarith_fast.ops.weighted_sum import OP, weighted_sum_reference
from tests.ops.cases import DTYPES, assert_within_budget, device_of, generator, task_lists

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("reference", "cpu", "cuda", "triton", "cuda_emulated")


@pytest.fixture(params=BACKENDS)
def backend(request):
    reason = OP.absent(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


def _run(base, finetuned, weights, backend):
    """The operator on `backend` from task-major lists of CPU tensors; results on the CPU."""
    device = device_of(backend)
    base, finetuned = [b.to(device) for b in base], [f.to(device) for f in finetuned]
    return [o.cpu() for o in OP(base, finetuned, weights.to(device), backend=backend)]


def _check(base, finetuned, weights, backend):
    out = _run(base, finetuned, weights, backend)
    doubles = [b.double() for b in base], [f.double() for f in finetuned]
    truth = weighted_sum_reference(*doubles, weights)
    assert_within_budget(out, weighted_sum_reference(base, finetuned, weights), truth)


def _weights(tasks, length):
    return torch.rand(tasks, length, dtype=torch.float64, generator=generator(1)) - 0.25


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tasks", [5, 16, 17, 377, 378, 800])
def test_any_number_of_tasks_is_rounded_once(backend, dtype, tasks):
    base, finetuned = task_lists([(3, 7), (33,)], tasks, dtype)
    _check(base, finetuned, _weights(tasks, 2), backend)


@pytest.mark.parametrize("tasks", [1, 8, 60])
def test_more_tensors_than_one_launch_holds(backend, tasks):
    shapes = [(i % 7, 5) for i in range(95)]
    base, finetuned = task_lists(shapes, tasks, torch.float32)
    _check(base, finetuned, _weights(tasks, 95), backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_elements_than_a_grid_holds(backend, dtype):
    base, finetuned = task_lists([(70001,), (5,), (40, 1000)], 2, dtype)
    _check(base, finetuned, _weights(2, 3), backend)


def test_storage_types_may_be_mixed_in_one_list(backend):
    base = [torch.randn(10 + i, generator=generator(i)).to(d) for i, d in enumerate(DTYPES * 3)]
    _check(base, [b * 1.25 for b in base] + [b * 0.5 for b in base], _weights(2, 9), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_misaligned_tensors_are_read_right(backend, dtype, offset):
    base, finetuned = task_lists([(1000 + offset,)], 2, dtype)
    finetuned = [finetuned[0][offset:], finetuned[1][offset:].clone()]
    _check([base[0][offset:]], finetuned, _weights(2, 1), backend)


def test_cancelling_deltas_keep_their_digits(backend):
    """+3e8 and -3e8 leave the last digits of the base, which a float32 sum has lost."""
    base = torch.randn(1001, generator=generator())
    finetuned = [base + 3e8, base * 2, base + 3e8]
    weights = torch.tensor([[1.0], [0.5], [-1.0]], dtype=torch.float64)
    float32 = base + sum(w.float() * (f - base) for w, f in zip(weights, finetuned, strict=True))
    assert (float32 - 1.5 * base).abs().max() > 1
    out = _run([base], finetuned, weights, backend)[0]
    torch.testing.assert_close(out, 1.5 * base, rtol=1e-6, atol=1e-7)


def test_no_task_copies_the_base(backend):
    base = torch.tensor([1.0, float("inf"), -0.0, 1e-42]).to(device_of(backend))
    (out,) = ops.weighted_sum([base], [], [], backend=backend)
    assert torch.equal(out.view(torch.int32), base.view(torch.int32))
    assert out.data_ptr() != base.data_ptr()


def test_no_tensor_gives_no_tensor(backend):
    assert ops.weighted_sum([], [[], []], [1.0, 2.0], backend=backend) == []


def test_a_nan_stays_where_it_is(backend):
    base = torch.zeros(70)
    finetuned = base.clone()
    finetuned[37] = float("nan")
    out = _run([base], [finetuned], torch.ones(1, 1, dtype=torch.float64), backend)[0]
    assert torch.isnan(out).nonzero().tolist() == [[37]]


def test_weights_get_their_gradient_through_the_public_function(backend):
    device = device_of(backend)
    base, task = torch.ones(5, device=device), torch.arange(5.0, device=device)
    weights = torch.tensor([0.5], device=device, requires_grad=True)
    (out,) = ops.weighted_sum([base], [[task]], weights, backend=backend)
    out.sum().backward()
    assert weights.grad.tolist() == [(task - base).sum().item()]


def test_bytes_do_not_depend_on_the_number_of_threads():
    base, finetuned = task_lists([(300, 301), (7,), (50001,)], 6, torch.bfloat16)
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(_run(base, finetuned, _weights(6, 3), "auto"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize(
    ("weights", "finetuned", "message"),
    [
        ([1.0, 2.0], [[torch.ones(3)]], r"weights must have shape \[T=1\] or \[T=1, L=1\], got \[2\]"),
        ([1.0], [[]], r"finetuned\[0\] must hold 1 tensors like base, got 0"),
        ([1.0], [[torch.ones(4)]], r"finetuned\[0\]\[0\] must be torch.float32 \[3\] .*, got .* \[4\]"),
        ([1.0], [[torch.ones(3).half()]], r"like base, got torch.float16"),
    ],
)
def test_arguments_that_do_not_fit_are_named(weights, finetuned, message):
    with pytest.raises(ArgumentError, match=message):
        ops.weighted_sum([torch.ones(3)], finetuned, weights)


def test_integers_are_refused():
    with pytest.raises(ArgumentError, match=r"base\[0\] must be float32, .*, got torch.int64"):
        ops.weighted_sum([torch.ones(3).long()], [[torch.ones(3).long()]], [1.0])


@pytest.mark.parametrize("backend", ["cpu", "cuda_emulated"])
def test_the_kernels_themselves_refuse_what_would_read_outside_memory(backend):
    if OP.absent(backend):
        pytest.skip(OP.absent(backend))
    base, short, weights = [torch.ones(8)], [torch.ones(4)], torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"finetuned\[0\] has 4 elements, base has 8"):
        OP(base, short, weights, backend=backend)
    with pytest.raises(RuntimeError, match=r"weights must have shape"):
        OP(base, base, weights[:, :0], backend=backend)
    with pytest.raises(RuntimeError, match="weights must be float64"):
        OP(base, base, weights.float(), backend=backend)


def test_the_triton_kernel_passes_the_same_tests_in_the_interpreter():
    """Triton decides at import whether it interprets, so this takes a process of its own."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this process interprets already")
    slow = ("377", "378", "800", "60")  # parameters of tests that take minutes in the interpreter
    chosen = " and not ".join(["weighted_sum and triton", *slow])
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", chosen]
    files = ["tests/ops/test_contract.py", "tests/ops/test_weighted_sum.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([*command, *files], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 50


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_triton_kernel_compiles_for_gpus_with_wide_loads(capability, dtype):
    if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs Triton's compiler")
    from taskarith_fast.kernels.weighted_sum import _weighted_sum_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    data, tasks = f"*{dtype}", 8
    names = ("base", "out", "partial", "finetuned", "weights", "weights_stride", "numel")
    kinds = (data, data, "*fp64", (data,) * tasks, "*fp64", "i32", "i32")
    constants = {"FIRST": True, "LAST": True, "BLOCK": 1024}
    signature = dict(zip(names, kinds, strict=True)) | dict.fromkeys(constants, "constexpr")
    aligned = [(0,), (1,), (2,), *((3, t) for t in range(tasks)), (6,)]
    attributes = {argument: [["tt.divisibility", 16]] for argument in aligned}
    source = ASTSource(_weighted_sum_kernel, signature, constants, attributes)
    ptx = compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
    assert len(re.findall(r"ld\.global[.\w:]*\.v4\.b32", ptx)) >= tasks + 1
