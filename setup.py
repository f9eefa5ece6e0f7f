"""Builds csrc/ into omnitrunk.kernels._C and ._cuda through CMake; all else about the package is in pyproject.toml.

A machine without a compiler still gets a working package: a build failure becomes one warning, and
omnitrunk.kernels.native says at run time what is missing. The CUDA kernels are built where nvcc is found and a GPU
answers; the environment variable OMNITRUNK_CUDA says otherwise: on, and then a failure is an error, or off.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
NEEDS = {"_C": "a C++17 compiler", "_cuda": "the CUDA toolkit and a C++17 compiler"}


def find_tool(name: str) -> str | None:
    """Path of a build tool, looked for beside the running Python first (where pip puts it), then on PATH."""
    beside_python = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([beside_python, os.environ.get("PATH", os.defpath)]))


def run_quietly(command: list[str]) -> None:
    """Run one build step; on failure print its output and raise CompileError with the lines that name the cause."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        print(result.stdout)
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        first = next((i for i, line in enumerate(lines) if "error" in line.lower()), -1)
        raise CompileError(" ".join(lines[first:][:3]).rstrip(".") or f"{command[0]} failed")


def cmake_arguments(module: str, folder: Path, output: Path) -> list[str]:
    """Arguments of `cmake` that configure a build in `folder` which leaves the module in `output`."""
    try:
        import pybind11
    except ModuleNotFoundError:
        raise CompileError("pybind11 not found: pip install pybind11") from None
    ninja = find_tool("ninja")
    return [
        # Fresh: a build folder may stem from another checkout, compiler or isolated environment.
        *("--fresh", "-S", str(ROOT), "-B", str(folder)),
        *(("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ()),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        # Nothing about CUDA may stand in the way of the kernels for CPUs.
        *(() if module == "_cuda" else ("-DOMNITRUNK_CUDA=off",)),
    ]


class CMakeBuild(build_ext):
    """Hands the extension modules to CMake, for wheels and for editable installs alike."""

    def build_extension(self, ext: Extension) -> None:
        """Configure csrc/ and build one of its modules, and leave it where setuptools expects it."""
        module = ext.name.rpartition(".")[2]
        folder = Path(self.build_temp).resolve() / module
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        try:
            cmake = find_tool("cmake")
            if cmake is None:
                raise CompileError("cmake not found: pip install cmake")
            run_quietly([cmake, *cmake_arguments(module, folder, output)])
            run_quietly([cmake, "--build", str(folder), "--target", module, "--config", "Release", "--parallel"])
        except CompileError as error:
            # `optional=True` on the extension turns this into a warning and lets the install go on.
            raise CompileError(
                f"{error}. omnitrunk works without it, on slower definitions; "
                f"to get it, install {NEEDS[module]} and install omnitrunk again."
            ) from None


def native(module: str, folder: str, *, optional: bool) -> Extension:
    """The extension omnitrunk.kernels.`module`; CMake has its own list of files, source distributions need this one."""
    return Extension(
        f"omnitrunk.kernels.{module}",
        sources=sorted([*glob(f"{folder}/*.cpp"), *glob(f"{folder}/*.cu")]),
        depends=["CMakeLists.txt", "csrc/cuda/CMakeLists.txt", *sorted(glob("csrc/**/*.*h", recursive=True))],
        optional=optional,
    )


setup(
    ext_modules=[
        native("_C", "csrc", optional=True),
        native("_cuda", "csrc/cuda", optional=os.environ.get("OMNITRUNK_CUDA") != "on"),
    ],
    cmdclass={"build_ext": CMakeBuild},
)
