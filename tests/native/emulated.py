"""Compile CUDA sources for execution on the CPU, as CMake does, but any of them and with any flags."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def toolkit() -> Path | None:
    """The CUDA toolkit whose headers the emulation takes, or None."""
    for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if root and (Path(root) / "include" / "cuda_fp16.h").exists():
            return Path(root)
    return None


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def program(name: str) -> str | None:
    """A program of the virtual environment or from PATH."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@functools.cache
def race_detector() -> list[str] | None:
    """What stands before a program compiled with -fsanitize=thread, which may need fixed addresses; None: no use."""
    with tempfile.TemporaryDirectory() as folder:
        build = [str(compiler()), "-fsanitize=thread", "-x", "c++", "-", "-o", f"{folder}/nothing"]
        if subprocess.run(build, input="int main() {}", text=True, capture_output=True).returncode != 0:
            return None
        befores = [[], ["setarch", "-R"]] if shutil.which("setarch") else [[]]
        works = (b for b in befores if subprocess.run([*b, f"{folder}/nothing"], capture_output=True).returncode == 0)
        return next(works, None)


def missing_tools() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    missing = toolkit() is None or compiler() is None
    return "needs a C++ compiler and the CUDA toolkit's headers" if missing else None


def flags(csrc: Path = CSRC) -> list[str]:
    """What every emulated source takes. NOTE: keep in step with taskarith_emulated in CMakeLists.txt."""
    includes = ["-DTASKARITH_EMULATED", f"-I{csrc}", "-isystem", str((toolkit() or Path()) / "include")]
    return ["-std=c++20", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-Wno-unknown-pragmas", *includes]


def _operator_flags() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    stable = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-fPIC", "-fvisibility=hidden"]
    return [*stable, *(flag for path in include_paths() for flag in ("-isystem", path))]


def precompile_torch(folder: Path, more: Sequence[str] = ()) -> list[str]:
    """Compile torch's headers once; what the next compile_emulated takes, with the same flags, to find them."""
    header = folder / "torch_headers.h"
    header.write_text("".join(f"#include <torch/csrc/stable/{name}.h>\n" for name in ("library", "ops", "tensor")))
    command = [str(compiler()), *flags(), *_operator_flags(), *more, "-x", "c++-header", str(header)]
    subprocess.run([*command, "-o", f"{header}.gch"], check=True)
    return ["-include", str(header)]


def compile_emulated(sources: Sequence[Path], library: Path, csrc: Path = CSRC, more: Sequence[str] = ()) -> None:
    """A library of the operators of these .cu files, for ops._contract.load_library("emulated")."""
    import torch

    from tools.write_schemas import source

    command = [str(compiler()), *flags(csrc), *_operator_flags(), *more, "-x", "c++"]
    link = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
    says = library.with_suffix(".schemas.cpp")
    says.write_text(source())
    inputs = [str(path) for path in (*sources, csrc / "emulation/exports.cpp", says)]
    subprocess.run([*command, "-shared", *inputs, "-o", str(library), *link], check=True)


def build_with_cmake(folder: Path, sanitizers: str) -> Path:
    """The whole library of emulated operators, compiled with sanitizers; its folder. Compiles only what changed."""
    import torch
    from torch.utils.cpp_extension import include_paths

    python = Path(sys.executable)
    pybind11 = subprocess.check_output([python, "-m", "pybind11", "--cmakedir"], text=True).strip()
    found = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": python,
        "pybind11_DIR": pybind11,
        "TORCH_INCLUDE_DIRS": ";".join(include_paths()),
        "TORCH_LIBRARY_DIR": Path(torch.__file__).parent / "lib",
        "TASKARITH_CUDA": "OFF",
        "TASKARITH_EMULATION": "ON",
        "TASKARITH_SANITIZE": sanitizers,
    }
    defined = [f"-D{name}={value}" for name, value in found.items()]
    cmake, ninja = str(program("cmake")), f"-DCMAKE_MAKE_PROGRAM={program('ninja')}"
    subprocess.run([cmake, "-S", CSRC.parent, "-B", folder, "-G", "Ninja", ninja, *defined], check=True)
    subprocess.run([cmake, "--build", folder, "--target", "taskarith_emulated", "-j", "2"], check=True)
    return folder
