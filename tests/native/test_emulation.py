"""The host execution of CUDA kernels: right ones are right in every order, every seeded bug is caught."""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch

from taskarith_fast import native, ops
from taskarith_fast.ops._contract import load_library, schemas
from tests.native.emulated import CSRC, compile_emulated, compiler, flags, missing_tools, race_detector, toolkit
from tests.ops.cases import all_cases

HERE = Path(__file__).resolve().parent
ORDERS = ("0 1", "1 1", "2 1", "2 2", "2 3")  # forward, reverse, three shuffles


def _compile(tmp_path_factory, *more):
    if reason := missing_tools():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("emulation") / "emulation_cases"
    command = [compiler(), *flags(), "-O1", "-Wall", "-Wextra", "-Werror", *more, HERE / "emulation_cases.cpp"]
    subprocess.run([*command, "-o", path], check=True)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return _compile(tmp_path_factory)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    return _compile(tmp_path_factory, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


@pytest.fixture(scope="module")
def race_detected(tmp_path_factory):
    if (before := race_detector()) is None:
        pytest.skip("ThreadSanitizer does not work here")
    return [*before, _compile(tmp_path_factory, "-g", "-fsanitize=thread")]


def _run(program, case, order="0 1"):
    return subprocess.check_output([program, case, *order.split()], text=True).strip()


RIGHT = (
    "block_sum_float", "block_sum_half", "block_sum_bfloat16", "tree_max", "compact", "shuffles", "votes",
    "shape", "vectors", "atomics", "two_boxes", "warp_tile", "works_after_a_report",
)  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_kernel_is_right_in_every_order(program, case):
    assert [_run(program, case, order) for order in ORDERS] == ["right"] * len(ORDERS)


@pytest.mark.parametrize("case", ["missing_barrier", "missing_second_barrier", "lost_update"])
def test_a_race_changes_the_result_in_some_order(program, case):
    assert "wrong" in [_run(program, case, order) for order in ORDERS]


REPORTS = {
    "divergent_barrier": r"divergent barrier: thread (16, 0, 0) is at emulation_kernels.cuh:",
    "divergent_warp": r"divergent warp: thread (16, 0, 0) is at emulation_kernels.cuh:",
    "mask_without_caller": "bad mask: thread (16, 0, 0) at emulation_kernels.cuh:",
    "mask_with_ended_lanes": "mask 0xffffffff names lane 8, which has ended (block (0, 0, 0))",
    "read_outside_mask": "reads lane 20, which mask 0x0000ffff does not name",
    "read_missing_lane": "bad mask: thread (39, 0, 0) at emulation_kernels.cuh:",
    "deadlock": "mask 0xffffffff names lane 1, which never comes",
    "behind_static": "tile was written behind its end",
    "behind_dynamic": "dynamic shared memory was written behind its end",
    "misaligned_vector": "misaligned access of 16 bytes at vector.cuh:",
    "too_much_static": "static shared memory over 48 KiB",
    "too_much_dynamic": "shared memory over the 163 KiB of sm_80",
    "too_many_threads": "block (32, 33, 1) is empty or has more than 1024 threads",
    "too_deep_block": "block (1, 1, 65) is empty or has more than 1024 threads or 64 in z",
    "empty_block": "block (0, 1, 1) is empty",
    "empty_grid": "grid (0, 1, 1) is outside",
    "too_high_grid": "grid (1, 65536, 1) is outside",
    "large_parameters": "4097 bytes of kernel parameters, at most 4096 fit",
}


@pytest.mark.parametrize("case", REPORTS)
def test_a_broken_kernel_is_reported(program, case):
    assert REPORTS[case] in _run(program, case)
    assert all(_run(program, case, order).startswith("CUDA emulation: ") for order in ORDERS)


SANITIZERS = {
    "read_behind": "heap-buffer-overflow",
    "int_offset": "signed integer overflow",
    "behind_static": "index 32 out of bounds for type 'float [32]'",
    "behind_dynamic": "dynamic shared memory was written behind its end",
}


@pytest.mark.slow
def test_the_sanitizers_find_nothing_in_right_kernels_and_the_bugs_in_broken_ones(sanitized):
    """Kernels run on fibers with stacks of their own, of which AddressSanitizer is told."""
    for order in ORDERS:
        assert [_run(sanitized, case, order) for case in RIGHT] == ["right"] * len(RIGHT)
        for case in REPORTS.keys() - SANITIZERS.keys():
            assert REPORTS[case] in _run(sanitized, case)
        for case, report in SANITIZERS.items():
            result = subprocess.run([sanitized, case, *order.split()], text=True, capture_output=True)
            assert report in result.stdout + result.stderr, case


RACES = (
    "missing_barrier", "missing_second_barrier", "lost_update", "two_blocks_one_word", "read_beside_atomic",
    "shuffle_for_syncwarp",
)  # fmt: skip


@pytest.mark.slow
def test_the_race_detector_finds_the_races_in_every_order_and_none_in_right_kernels(race_detected):
    def run(case, order):
        return subprocess.run([*race_detected, case, *order.split()], text=True, capture_output=True)

    for order in ORDERS:
        for case in RIGHT:
            result = run(case, order)
            assert (result.stdout, result.returncode) == ("right\n", 0), (case, result.stderr[-4000:])
        for case in RACES:
            result = run(case, order)
            assert result.returncode != 0 and "WARNING: ThreadSanitizer: data race" in result.stderr, case
            assert re.search(r"'block \(\d, 0, 0\) thread \(\d+, 0, 0\)'", result.stderr), case


def test_nvcc_takes_the_same_kernels(tmp_path):
    nvcc = (toolkit() or Path("nowhere")) / "bin" / "nvcc"
    if not nvcc.exists():
        pytest.skip("no nvcc")
    command = [nvcc, "-std=c++20", "-arch=sm_80", f"-I{CSRC}", "-x", "cu", "-c", "-o", tmp_path / "kernels.o"]
    subprocess.run([*command, HERE / "emulation_kernels.cuh"], check=True)


def _emulated_library():
    reason = load_library("emulated")
    if reason:
        pytest.skip(reason)
    return ctypes.CDLL(str(native.LIBRARY_DIR / "libtaskarith_emulated.so"))


KERNELS = [case for case in all_cases() if case.op.absent("cuda_emulated") is None]


@pytest.mark.slow
@pytest.mark.parametrize("numel", [2**31 + 4099, 2**40])
def test_offsets_in_tensors_beyond_two_to_the_31_are_right(numel, tmp_path):
    if reason := missing_tools():
        pytest.skip(reason)
    compile_emulated([HERE / "large_tensor.cu"], tmp_path / "large_tensor.so", more=["-O1", "-w"])
    out = (ctypes.c_uint64 * 2)()
    ctypes.CDLL(str(tmp_path / "large_tensor.so")).last_chunk(ctypes.c_int64(numel), out)
    first = (numel - 1) // 4096 * 4096
    assert list(out) == [sum(range(first, numel, 8)), numel - first]


def test_an_unknown_order_of_threads_is_refused():
    assert _emulated_library().taskarith_emulation_schedule(3, 1) == 1


def test_the_cuda_library_loads_without_a_gpu():
    path = native.LIBRARY_DIR / "libtaskarith_cuda.so"
    if not path.exists():
        pytest.skip("libtaskarith_cuda.so was not built")
    if reason := native.stale(path, schemas()):
        pytest.skip(reason)
    torch.ops.load_library(str(path))
    for case in KERNELS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"taskarith::{case.op.name}", "CUDA"), case.op.name
    assert ops.weighted_sum([torch.ones(3)], [[torch.zeros(3)]], [0.5])[0].tolist() == [0.5] * 3
