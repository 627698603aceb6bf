"""Every __global__ function, in every instantiation that is compiled, runs in the operators' samples."""

import ctypes
import re
import shutil
import subprocess
from collections import Counter

import pytest

from taskarith_fast import native
from taskarith_fast.ops._contract import load_library
from tests.native.emulated import CSRC
from tests.ops.run_kernels import run
from tools.ptxas_report import LIBRARY, bare_name, cuobjdump, usages

KERNEL = re.compile(r"\w+_kernel(<[^{}:]*>)?")


@pytest.fixture(scope="module")
def emulated():
    """The library of emulated operators, and its kernels: place in the file -> name."""
    reason = load_library("emulated")
    if reason or shutil.which("nm") is None:
        pytest.skip(reason or "no nm")
    path = native.LIBRARY_DIR / "libtaskarith_emulated.so"
    functions = re.findall(r"^(\w+) t (.*)$", subprocess.check_output(["nm", "-C", path], text=True), re.MULTILINE)
    names = {int(place, 16): bare_name(name) for place, name in functions}
    return ctypes.CDLL(str(path)), {place: name for place, name in names.items() if KERNEL.fullmatch(name)}


def test_every_global_function_is_called_a_kernel():
    for path in [*CSRC.glob("ops/cuda/*.cu"), *CSRC.glob("utils/*.cuh")]:
        for declared in re.findall(r"__global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\(", path.read_text()):
            assert KERNEL.fullmatch(declared), f"{path.name}: {declared}"


@pytest.mark.slow
def test_the_samples_run_every_kernel_in_every_instantiation(emulated):
    library, kernels = emulated
    places = (ctypes.c_uint64 * 4096)()
    library.taskarith_emulation_executed(places, len(places))  # what ran before does not count
    assert run("cuda_emulated") > 0
    executed = set(places[: library.taskarith_emulation_executed(places, len(places))])
    assert executed <= kernels.keys()
    assert sorted(kernels[place] for place in kernels.keys() - executed) == []


def test_the_cuda_library_holds_the_same_kernels(emulated):
    tool = cuobjdump()
    if tool is None or not LIBRARY.exists():
        pytest.skip("no cuobjdump" if tool is None else f"{LIBRARY.name} was not built")
    shipped = usages(LIBRARY, tool)
    for architecture in {usage.architecture for usage in shipped}:
        names = Counter(usage.kernel for usage in shipped if usage.architecture == architecture)
        # nvcc keeps the upload in files that do not use it.
        assert {**names, "upload_kernel": 0} == {**Counter(emulated[1].values()), "upload_kernel": 0}, architecture
