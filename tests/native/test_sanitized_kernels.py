"""Every emulated kernel on every sample under the compiler's sanitizers; on small samples under its race detector."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.emulated import build_with_cmake, compiler, missing_tools, program, race_detector

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = {"address,undefined": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:detect_deadlocks=0:ignore_noninstrumented_modules=1",
}


def _runtime(name):
    """A library of the compiler's, which has to be loaded before anything else."""
    path = subprocess.check_output([compiler(), f"-print-file-name={name}"], text=True).strip()
    return path if Path(path).is_absolute() else None


def _watched(sanitizers, before=()):
    """Runs Python code with the sanitized emulation; what did not change since the last time is not compiled again."""
    if reason := missing_tools():
        pytest.skip(reason)
    if None in map(_runtime, RUNTIMES[sanitizers]) or program("cmake") is None or program("ninja") is None:
        pytest.skip("needs the sanitizers' runtimes, CMake and Ninja")
    libraries = build_with_cmake(ROOT / "build/sanitized" / sanitizers.replace(",", "_"), sanitizers)
    preload = [_runtime(name) for name in (*RUNTIMES[sanitizers], "libstdc++.so")]  # exceptions are watched, too

    def run(code):
        code = f"import pathlib, taskarith_fast.native as n; n.LIBRARY_DIR = pathlib.Path({str(libraries)!r}); {code}"
        settings = {"PYTHONPATH": str(ROOT), "PYTHONMALLOC": "malloc", "LD_PRELOAD": " ".join(preload), **OPTIONS}
        command = [*before, sys.executable, "-c", code]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, text=True, capture_output=True)

    return run


@pytest.fixture(scope="module")
def sanitized():
    return _watched("address,undefined")


@pytest.fixture(scope="module")
def race_detected():
    before = race_detector()
    if before is None:
        pytest.skip("ThreadSanitizer does not work here")
    return _watched("thread", before)


def _run_operators(watched, *largest):
    """Call every operator, or those samples that are no larger; what was reported."""
    result = watched(f"from tests.ops.run_kernels import run; print(run{('cuda_emulated', *largest)}, 'calls')")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    assert int(result.stdout.split()[-2]) > 0
    return result.stderr


@pytest.mark.slow
def test_the_sanitizers_find_nothing_in_the_operators(sanitized):
    assert "runtime error" not in _run_operators(sanitized)


@pytest.mark.slow
def test_the_sanitizers_watch_the_operators(sanitized):
    """Five numbers, said to be nine."""
    code = "import ctypes, torch; from taskarith_fast.ops.weighted_sum import OP; x = torch.ones(5);"
    code += "nine = torch.frombuffer((ctypes.c_float * 9).from_address(x.data_ptr()), dtype=torch.float32);"
    code += "OP([nine], [nine], torch.ones(1, 1, dtype=torch.float64), backend='cuda_emulated')"
    result = sanitized(code)
    assert result.returncode != 0 and "heap-buffer-overflow" in result.stderr, result.stderr[-2000:]


@pytest.mark.slow
def test_the_race_detector_finds_nothing_in_the_operators(race_detected):
    _run_operators(race_detected, 5000)


@pytest.mark.slow
def test_the_race_detector_watches_the_operators(race_detected):
    """Every tensor is given twice, so that two blocks write it."""
    code = "import torch; from tests.ops.case_sparse_sgd_step_ import CASE, OP;"
    code += "args = CASE.samples['random'](torch.float32); print('called');"
    code += "OP(*[2 * x if isinstance(x, list) else x for x in args], backend='cuda_emulated')"
    result = race_detected(code)
    assert "called" in result.stdout and "data race" in result.stderr, result.stderr[-2000:]
    assert "sparse_step_kernel" in result.stderr and result.returncode != 0
