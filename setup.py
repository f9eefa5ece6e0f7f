"""Builds csrc/ into omnitrunk.kernels._C through CMake; everything else about the package is in pyproject.toml.

A machine without a compiler still gets a working package: the build failure becomes one warning, and
omnitrunk.kernels.native says at run time what is missing.
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


def cmake_arguments(folder: Path, output: Path) -> list[str]:
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
    ]


class CMakeBuild(build_ext):
    """Hands the one extension module to CMake, for wheels and for editable installs alike."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build csrc/, and leave the module where setuptools expects it."""
        folder = Path(self.build_temp).resolve() / "cmake"
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        try:
            cmake = find_tool("cmake")
            if cmake is None:
                raise CompileError("cmake not found: pip install cmake")
            run_quietly([cmake, *cmake_arguments(folder, output)])
            run_quietly([cmake, "--build", str(folder), "--config", "Release", "--parallel"])
        except CompileError as error:
            # `optional=True` on the extension turns this into a warning and lets the install go on.
            raise CompileError(
                f"{error}. omnitrunk works without it, on slower definitions; "
                "to get it, install a C++17 compiler and install omnitrunk again."
            ) from None


setup(
    # CMake has its own list; the files are named here so that source distributions contain them.
    ext_modules=[
        Extension(
            "omnitrunk.kernels._C",
            sources=sorted(glob("csrc/*.cpp")),
            depends=["CMakeLists.txt", *sorted(glob("csrc/*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": CMakeBuild},
)
