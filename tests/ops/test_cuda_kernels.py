"""What the CUDA kernels have to get right beyond the contract: addresses, table sizes, segments longer than a run."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taskarith_fast import native
from taskarith_fast.ops import kth_magnitude, ties_merge
from taskarith_fast.ops.bottom_k_mask import OP as BOTTOM_K
from taskarith_fast.ops.breadcrumbs import OP as BREADCRUMBS
from tests.ops.cases import InPlace, all_cases, generator, listed, task_lists

ROOT = Path(__file__).resolve().parents[2]
KERNELS = [case for case in all_cases() if case.op.absent("cuda_emulated") is None]
pytestmark = pytest.mark.skipif(not KERNELS, reason="libtaskarith_emulated.so was not built")


def _map(args, change):
    if isinstance(args, torch.Tensor):
        return change(args)
    return type(args)(_map(a, change) for a in args) if isinstance(args, (list, tuple)) else args


def _off_by_one(x):
    """The same values one element behind an aligned address."""
    place = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:]
    place.copy_(x.reshape(-1))
    return place.reshape(x.shape)


def _run(case, args):
    """What the operator gives, or changes: in the very memory of the arguments."""
    if not isinstance(case.op, InPlace):
        return listed(case.op(*args, backend="cuda_emulated"))
    case.op.op(*args, backend="cuda_emulated")
    return [x for i in case.op.changed for x in listed(args[i])]


SOME = [
    pytest.param(case, name, id=f"{case.op.name}-{name}")
    for case in KERNELS
    for i, name in enumerate(case.samples)
    if i == 0 or name in ("runs", "all")
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("case", "name"), SOME)
def test_tensors_at_odd_addresses_give_the_same_bytes(case, name, dtype):
    sample = case.samples[name]
    aligned, odd = _run(case, sample(dtype)), _run(case, _map(sample(dtype), _off_by_one))
    assert all(torch.equal(a, b) for a, b in zip(aligned, odd, strict=True))


@pytest.mark.parametrize("case", KERNELS, ids=lambda case: case.op.name)
def test_the_order_of_blocks_and_threads_does_not_show(case):
    set_order = ctypes.CDLL(str(native.LIBRARY_DIR / "libtaskarith_emulated.so")).taskarith_emulation_schedule
    sample = next(iter(case.samples.values()))
    try:
        outs = [_run(case, sample(torch.float32)) for order in (0, 1, 2) if set_order(order, 7) == 0]
    finally:
        set_order(0, 1)
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outs[0], other, strict=True))


def _before_unreadable_memory(x):
    """The same values in memory that ends where the tensor does: the next byte may not be touched."""
    page, size = mmap.PAGESIZE, x.numel() * x.element_size()
    length = -(-size // page) * page
    area = mmap.mmap(-1, length + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + length), page, 0) == 0
    if size == 0:
        return x
    place = torch.frombuffer(area, dtype=x.dtype, count=x.numel(), offset=length - size)
    place.copy_(x.reshape(-1))
    return place.reshape(x.shape)


def run_before_unreadable_memory():
    for case in KERNELS:
        named = ("odd sizes", "some, all, none", "each row", "empty", "random", "runs", "all", "masters")
        for name in {next(iter(case.samples)), *named}:
            for dtype in case.dtypes if name in case.samples else ():
                args = _map(case.samples[name](dtype), lambda x: _before_unreadable_memory(x.contiguous()))
                _run(case, args)


def test_kernels_touch_nothing_behind_a_tensor():
    """In a process of its own, which would be killed; glibc looks behind the results when they are freed."""
    code = f"from {__name__} import run_before_unreadable_memory as run; run()"
    checked = {**os.environ, "LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=checked)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("name", ["dare", "weighted_sum_backward", "tall_mask", "ties_merge"])
def test_tables_larger_than_one_upload_arrive_whole(name):
    """200 tasks and 3 tensors: 600 pointers, of which a launch carries 500."""
    case = next(case for case in KERNELS if case.op.name == name)
    base, finetuned = task_lists([(3, 5), (1,), (9,)], 200, torch.float32)
    tables = {
        "dare": (torch.rand(200, 3).double(), torch.arange(600).reshape(200, 3), 2**31, torch.zeros(3).long()),
        "tall_mask": (torch.full((200,), 0.01, dtype=torch.float64),),
        "ties_merge": (
            torch.full((1, 200), 0.01),
            torch.full((1, 200), 7),
            *(0.5, "mass", "mean", "global_majority", "global"),
        ),
    }
    args = (base, base, finetuned) if name == "weighted_sum_backward" else (base, finetuned, *tables[name])
    ours, theirs = (listed(case.op(*args, backend=b)) for b in ("cuda_emulated", "cpu"))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("scope", "k"), [("tensor", [66_000, 3]), ("row", [700, 2])])
def test_long_segments_have_the_thresholds_of_the_cpu(scope, k):
    base, finetuned = task_lists([(2, 70_001), (5,)], 2, torch.float32)
    finetuned = [[torch.round(f * 50) / 50 for f in task] for task in (finetuned[:2], finetuned[2:])]
    ours, theirs = (kth_magnitude(base, finetuned, k, scope=scope, backend=b) for b in ("cuda_emulated", "cpu"))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("k", [1, 65_535, 65_536, 65_537, 139_999, 140_000])
def test_ties_are_cut_in_the_run_where_the_rank_falls(k):
    base, finetuned = [torch.zeros(140_000, dtype=torch.bfloat16)], [torch.ones(140_000, dtype=torch.bfloat16)]
    threshold, cutoff = kth_magnitude(base, [finetuned], k, backend="cuda_emulated")
    assert threshold.item() == 1.0 and cutoff.item() == k


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("combine", ["mean", "max"])
def test_zero_votes_take_the_sign_that_the_device_counted(sign, combine):
    """Half of the entries cancel; the others decide what becomes of them, in chunks far apart."""
    base = [torch.zeros(9000)]
    finetuned = [[torch.ones(9000)], [-torch.ones(9000)]]
    finetuned[0][0][4500:] = finetuned[1][0][4500:] = sign
    thresholds = torch.zeros(1, 2)
    out = [
        ties_merge(base, finetuned, thresholds, combine=combine, backend=b)[0] for b in ("cuda_emulated", "reference")
    ]
    assert torch.equal(*out)


def test_breadcrumbs_refuses_more_tasks_than_fit_in_shared_memory():
    base, finetuned = task_lists([(1,)], 4097, torch.float32)
    weights = torch.rand(4097, 1, dtype=torch.float64, generator=generator())
    with pytest.raises(RuntimeError, match="breadcrumbs: at most 4096 tasks on a GPU, got 4097"):
        BREADCRUMBS(base, finetuned, weights, [0], [1], backend="cuda_emulated")


@pytest.mark.parametrize("spread", ["normal", "outliers", "few values", "equal", "infinite"])
@pytest.mark.parametrize("size", [1, 33, 512, 700, 1024, 1025, 4096, 4097])
def test_breadcrumbs_cuts_rows_of_any_length_and_spread_as_the_cpu_does(size, spread):
    g = generator(size)
    base = [torch.randn(3, size, generator=g)]
    delta = torch.randn(3, size, generator=g) * 1e-2
    if spread == "outliers":
        delta[:, ::50] *= 1e6
    elif spread == "few values":
        delta = torch.round(delta * 100) / 64
        base = [torch.zeros(3, size)]
    elif spread == "equal":
        delta, base = torch.full((3, size), 0.25), [torch.zeros(3, size)]
    elif spread == "infinite":
        delta[:, ::7] = torch.inf
    finetuned, weights = [base[0] + delta], torch.full((1, 1), 0.5, dtype=torch.float64)
    for removed, kept in ((0, 0), (0, size), (size // 10, size // 5), (size // 3, size - size // 3), (size, 0)):
        args = (base, finetuned, weights, [removed], [kept])
        ours, theirs = (BREADCRUMBS(*args, backend=b)[0] for b in ("cuda_emulated", "cpu"))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_k_that_the_host_cannot_check_takes_all_candidates():
    """On a GPU the excluded entries are counted by the kernel, which must end for any k."""
    scores, excluded = [torch.arange(10.0)], [torch.tensor([0b00001111, 0], dtype=torch.uint8)]
    assert BOTTOM_K(scores, excluded, 9, False, backend="cuda_emulated")[0].tolist() == [0b11110000, 0b11]
    every = [torch.full((2,), 255, dtype=torch.uint8)]
    assert BOTTOM_K(scores, every, 1, False, backend="cuda_emulated")[0].tolist() == [0, 0]
