"""Build the native parts with CMake and Ninja; everything else is in pyproject.toml.

TASKARITH_NATIVE=0 leaves them out (every operator then runs its PyTorch reference); TASKARITH_NATIVE=dev adds the
host execution of the CUDA sources that the tests use. CMAKE_ARGS reaches CMake, for example -DTASKARITH_CUDA=OFF.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("TASKARITH_NATIVE", "1")


class CMakeBuild(build_ext):
    """One CMake build in a fixed directory, so that a rebuild compiles only what changed."""

    def run(self) -> None:
        import pybind11
        import torch
        from torch.utils import cpp_extension

        package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        build = ROOT / "build" / "native"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_INSTALL_PREFIX={package / 'taskarith_fast'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_INCLUDE_DIRS={';'.join(cpp_extension.include_paths())}",
            f"-DTORCH_LIBRARY_DIR={Path(torch.__file__).parent / 'lib'}",
            f"-DTASKARITH_EMULATION={'ON' if MODE == 'dev' else 'OFF'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.check_call(configure)
        subprocess.check_call(["cmake", "--build", str(build), "--target", "install"])

    def get_outputs(self) -> list[str]:
        return []


setup(
    package_dir={"taskarith_fast.kernels": "kernels"},
    packages=[
        *sorted(
            str(p.parent.relative_to(ROOT)).replace(os.sep, ".") for p in ROOT.glob("taskarith_fast/**/__init__.py")
        ),
        "taskarith_fast.kernels",
    ],
    ext_modules=[Extension("taskarith_fast._native", [])] if MODE != "0" else [],
    cmdclass={"build_ext": CMakeBuild},
)
