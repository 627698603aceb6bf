"""Every emulated kernel on every sample under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.emulated import build_with_cmake, compiler, missing_tools, program

ROOT = Path(__file__).resolve().parents[2]


def _runtime(name):
    """A library of the compiler's, which has to be loaded before anything else."""
    path = subprocess.check_output([compiler(), f"-print-file-name={name}"], text=True).strip()
    return path if Path(path).is_absolute() else None


@pytest.fixture(scope="module")
def libraries():
    """A folder with the sanitized emulation; what did not change since the last time is not compiled again."""
    if reason := missing_tools():
        pytest.skip(reason)
    if _runtime("libasan.so") is None or program("cmake") is None or program("ninja") is None:
        pytest.skip("needs AddressSanitizer's runtime, CMake and Ninja")
    return build_with_cmake(ROOT / "build/sanitized", "address,undefined")


def _run(libraries, code):
    preload = [_runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]  # exceptions are watched, too
    options = {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    code = f"import pathlib, taskarith_fast.native as n; n.LIBRARY_DIR = pathlib.Path({str(libraries)!r}); {code}"
    environment = {**os.environ, **options, "PYTHONPATH": str(ROOT), "PYTHONMALLOC": "malloc"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True)


@pytest.mark.slow
def test_the_sanitizers_find_nothing_in_the_operators(libraries):
    result = _run(libraries, "from tests.ops.run_kernels import run; print(run('cuda_emulated'), 'calls')")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    assert int(result.stdout.split()[-2]) > 0 and "runtime error" not in result.stderr


@pytest.mark.slow
def test_the_sanitizers_watch_the_operators(libraries):
    """Five numbers, said to be nine."""
    code = "import ctypes, torch; from taskarith_fast.ops.weighted_sum import OP; x = torch.ones(5);"
    code += "nine = torch.frombuffer((ctypes.c_float * 9).from_address(x.data_ptr()), dtype=torch.float32);"
    code += "OP([nine], [nine], torch.ones(1, 1, dtype=torch.float64), backend='cuda_emulated')"
    result = _run(libraries, code)
    assert result.returncode != 0 and "heap-buffer-overflow" in result.stderr, result.stderr[-2000:]
