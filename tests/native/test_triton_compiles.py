"""Every Triton kernel compiled ahead of time: it fits the GPU, spills nothing, and uses tensor cores where it can.

A module of kernels/ lists what is launched from it as ``COMPILED``: (kernel's name, signature, constants). A signature
maps each argument to Triton's type, ``:16`` behind it where address or value is a multiple of 16; a tuple of types is
a tuple of arguments. Constants are the kernel's other arguments, and ``num_warps`` and ``num_stages``.
"""

import importlib
import importlib.util
import os
import re
from pathlib import Path

import pytest

from tools.ptxas_report import cuobjdump, usages

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
STEMS = sorted(path.stem for path in KERNELS.glob("*.py") if path.stem != "__init__")
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one block can have

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs Triton's compiler",
)


def _module(stem):
    return importlib.import_module(f"taskarith_fast.kernels.{stem}")


def _plain(kind):
    return tuple(_plain(k) for k in kind) if isinstance(kind, tuple) else kind.partition(":")[0]


def _aligned(kind, place):
    if isinstance(kind, tuple):
        return {p: a for i, k in enumerate(kind) for p, a in _aligned(k, (*place, i)).items()}
    return {place: [["tt.divisibility", 16]]} if kind.endswith(":16") else {}


def build(kernel, signature, constants, capability):
    """Compile one kernel for one architecture; no GPU is needed."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    constants = dict(constants)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    assert set(kernel.arg_names) == signature.keys() | constants.keys(), kernel.arg_names
    kinds = {n: _plain(signature[n]) if n in signature else "constexpr" for n in kernel.arg_names}
    attributes = {}
    for i, name in enumerate(kernel.arg_names):
        attributes |= _aligned(signature.get(name, ""), (i,))
    source = ASTSource(kernel, kinds, constants, attributes)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("stem", STEMS)
def test_every_kernel_is_listed(stem):
    module = _module(stem)
    kernels = re.findall(r"^def (\w+_kernel)\(", (KERNELS / f"{stem}.py").read_text(), re.MULTILINE)
    assert set(kernels) == {name for name, _, _ in getattr(module, "COMPILED", [])}


@pytest.mark.slow
@pytest.mark.parametrize("capability", sorted(SHARED))
@pytest.mark.parametrize("stem", STEMS)
def test_kernels_fit_without_spills_and_use_tensor_cores(stem, capability, tmp_path):
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump")
    module = _module(stem)
    for name, signature, constants in getattr(module, "COMPILED", []):
        found = build(getattr(module, name), signature, constants, capability)
        case = f"{name} {signature} {constants}"
        assert found.metadata.shared <= SHARED[capability], f"{found.metadata.shared} bytes shared: {case}"
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(found.asm["cubin"])
        for usage in usages(cubin, tool):
            assert usage.stack == usage.local == 0, f"{usage}: {case}"
        if re.search(r"tt\.dot .*tensor<\d+x\d+x(bf16|f16)>", found.asm["ttir"]):
            assert ("wgmma" if capability == 90 else "mma.sync") in found.asm["ptx"], case
        if re.search(r"tt\.dot .*tensor<\d+x\d+xf64>", found.asm["ttir"]):
            assert re.search(r"mma\.sync\S+\.f64", found.asm["ptx"]), case
