"""Builds what is not Python: protos by grpcio-tools, the C++ libraries by CMake and Ninja. The rest is pyproject.toml.

A build makes both libraries or fails. MILLRACE_WITHOUT_OPS=1 leaves out the op library, the only one that is compiled
against TensorFlow: the workers of a Beam feed need the library of records alone. An sdist made under that variable
gives wheels without the op library on every machine.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import ExecError

_ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(_ROOT / "build_tools"))

from build_backend import WITHOUT_OPS, WITHOUT_OPS_MARK, leaves_ops_out, project_requirement  # noqa: E402

_PACKAGE = "millrace.ops._"
_RECORDS, _OPS = "millrace_records", "millrace_ops"  # targets of CMakeLists.txt
_PROGRAMS = {"cmake": "cmake", "ninja": "ninja-build"}  # program -> its Debian package
_COMPILERS = ("c++", "g++", "clang++")


def _run(command: list[str], what: str) -> None:
    """Runs `command` in the project's root; ExecError, which ends the build in one line, when it fails."""
    code = subprocess.run(command, cwd=_ROOT).returncode
    if code:
        raise ExecError(f"{what} failed with exit code {code}; its output above says why")


class BuildProtos(build_py):
    """Compiles millrace/protos/*.proto first; each module goes into the folder of its proto."""

    def run(self) -> None:
        protos = sorted(str(path.relative_to(_ROOT)) for path in (_ROOT / "millrace" / "protos").glob("*.proto"))
        compiler = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--pyi_out=."]
        _run([*compiler, *protos], "grpc_tools.protoc")
        super().run()


class BuildLibraries(build_ext):
    """Runs CMake. TensorFlow and ctypes load the libraries, no import does, so their names carry no Python tag."""

    def run(self) -> None:
        self._in_checkout = bool(self.inplace)  # setuptools' own run() clears `inplace`
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extensions(self) -> None:
        targets = [ext.name.removeprefix(_PACKAGE) for ext in self.extensions]
        _check_tools(needs_tensorflow=_OPS in targets)
        destination = Path(self.build_lib).absolute() / "millrace" / "ops"
        destination.mkdir(parents=True, exist_ok=True)
        # A wheel gets a build folder of its own: it may be built with the TensorFlow of an environment soon deleted.
        folder = _ROOT / "build" / "cmake" if self._in_checkout else Path(self.build_temp).absolute() / "cmake"
        output = _ROOT / "ops" if self._in_checkout else destination
        configure = ["cmake", "-S", str(_ROOT), "-B", str(folder), "-G", "Ninja"]
        if not (folder / "CMakeCache.txt").exists():
            configure.append("-DMILLRACE_TESTS=OFF")  # `make` turns them on in the same folder
        configure += [f"-DPython3_EXECUTABLE={sys.executable}", f"-DMILLRACE_OUTPUT_DIR={output}"]
        configure.append(f"-DMILLRACE_OPS={'ON' if _OPS in targets else 'OFF'}")
        _run(configure, "cmake")
        _run(["cmake", "--build", str(folder), "--target", *targets], "cmake --build")
        if self._in_checkout:  # setuptools copies them from the build folder to the sources
            for target in targets:
                shutil.copy(output / f"_{target}.so", destination)


def _check_tools(needs_tensorflow: bool) -> None:
    """ExecError with the first program that the build needs and does not find."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise ExecError(f"{program} is not on PATH: install it (Debian: apt-get install {package})")
    if not os.environ.get("CXX") and not any(map(shutil.which, _COMPILERS)):
        raise ExecError("there is no C++ compiler on PATH: install one (Debian: apt-get install g++) or set CXX")
    # In a process of its own: importing TensorFlow here would take a second, finding its folder says nothing.
    if needs_tensorflow and subprocess.run([sys.executable, "-c", "import tensorflow"], capture_output=True).returncode:
        raise ExecError(
            f"{sys.executable} cannot import TensorFlow, against which the op library is built: "
            f"`pip install '{project_requirement('tensorflow')}'`, or {WITHOUT_OPS}=1 to leave the op library out"
        )


class MarkedSdist(sdist):
    """Writes into the sdist whether wheels built from it shall leave out the op library."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        if leaves_ops_out():
            (Path(base_dir) / WITHOUT_OPS_MARK).touch()


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of this platform: no library in it uses Python's C interface."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=find_packages(include=["millrace", "millrace.*"]),
    package_data={
        "millrace.examples": ["recipes/*.yaml"],
        "millrace.pipelines": ["*.yaml"],
        "millrace.protos": ["*.proto", "*.pyi"],
        "millrace.runtime.servers": ["poms/*.xml", "patches/*/*.java"],
    },
    ext_modules=[
        Extension(f"{_PACKAGE}{target}", sources=[])
        for target in ([_RECORDS] if leaves_ops_out() else [_RECORDS, _OPS])
    ],
    cmdclass={"bdist_wheel": PlatformWheel, "build_ext": BuildLibraries, "build_py": BuildProtos, "sdist": MarkedSdist},
)
