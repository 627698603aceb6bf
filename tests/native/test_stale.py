"""A library that was built for other operators is refused before any of its kernels is registered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskarith_fast import native
from taskarith_fast.ops._contract import load_library, schemas

ROOT = Path(__file__).resolve().parents[2]
BUILT = native.LIBRARY_DIR / "libtaskarith_cpu.so"
RUN = """
import pathlib, torch, taskarith_fast.native as native
native.LIBRARY_DIR = pathlib.Path({folder!r})
import taskarith_fast as ta
from taskarith_fast.ops.weighted_sum import OP
print(OP([torch.ones(3)], [torch.full((3,), 3.)], torch.full((1, 1), .5).double())[0].tolist())
print(torch._C._dispatch_has_kernel_for_dispatch_key("taskarith::weighted_sum", "CPU"), OP.absent("cpu"))
"""


@pytest.fixture
def built():
    """The bytes of the library, which belongs to this tree."""
    if reason := load_library("cpu"):
        pytest.skip(reason)
    return BUILT.read_bytes()


def _run(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TASKARITH_BACKEND": "auto"}
    command = [sys.executable, "-c", RUN.format(folder=str(folder))]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=True)


def test_a_library_says_what_it_was_built_for(built):
    text = built.partition(native.SCHEMAS_MARK.encode())[2].partition(b"\0")[0].decode()
    assert text == "".join(f"{name}{schema}\n" for name, schema in schemas().items())


def test_a_library_of_this_tree_is_loaded(built, tmp_path):
    (tmp_path / BUILT.name).write_bytes(built)
    done = _run(tmp_path)
    assert done.stdout.splitlines() == ["[2.0, 2.0, 2.0]", "True None"] and not done.stderr


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"pack_bits(Tensor[] masks)", b"pack_bits(Tensor[] bools)", "pack_bits had another schema"),
        (native.SCHEMAS_MARK.encode(), b"taskarith nothing:\n", "it names no schemas"),
    ],
)
def test_a_library_of_another_tree_is_refused_and_the_reference_serves(built, tmp_path, old, new, why):
    assert built.count(old) == 1 and len(old) == len(new)
    (tmp_path / BUILT.name).write_bytes(built.replace(old, new))
    done = _run(tmp_path)
    reason = f"libtaskarith_cpu.so was built from other sources ({why}): rebuild with pip install -e ."
    assert done.stdout.splitlines() == ["[2.0, 2.0, 2.0]", f"False {reason}"]
    assert done.stderr.count("RuntimeWarning: " + reason) == 1


def test_an_operator_that_is_new_in_python_leaves_the_others_their_kernels(built):
    assert native.stale(BUILT, schemas() | {"new_one": "(Tensor x) -> Tensor"}) is None
    assert "dare had another schema" in native.stale(BUILT, schemas() | {"dare": "(Tensor x) -> Tensor"})
