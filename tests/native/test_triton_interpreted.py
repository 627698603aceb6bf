"""Every operator's Triton kernel passes the operator tests in Triton's interpreter, on the CPU."""

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from taskarith_fast.ops._contract import registered
from tests.native.test_triton_compiles import KERNELS

OPS = [op.name for op in registered() if op.triton]


def test_every_kernel_file_belongs_to_an_operator():
    assert {path.stem for path in KERNELS.glob("[a-z]*.py")} == set(OPS)


def test_every_operator_has_a_kernel_or_is_composed_of_torchs():
    assert [op.name for op in registered() if not (op.triton or op.composed)] == []


@pytest.mark.slow
def test_the_kernels_pass_the_operator_tests():
    """Triton decides at import whether it interprets, so this takes a process of its own, one for all."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this process interprets already")
    # Samples of many programs take minutes in the interpreter: none for a CPU kernel's chunks, others in float32 alone.
    many = "several_blocks or long_runs or nearly_all or nine_tasks or narrow_rows or several_turns"
    chosen = f"triton and not chunk and not (float16 and ({many}))"
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-k", chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    test = [*command, "tests/ops/test_contract.py"]
    result = subprocess.run(test, cwd=KERNELS.parent, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = Counter(re.findall(r"\[(\w+)-triton\S* PASSED", result.stdout))
    assert all(passed[name] > 5 for name in OPS), passed
