"""Builds what is not Python: protos by grpcio-tools, the C++ libraries by CMake and Ninja. The rest is pyproject.toml.

Also what Beam's `--setup_file` ships to its workers. They need no TensorFlow; without it the library of ops, which is
compiled against it, is left out, and only `ops/library.py` misses it. The library of records is always built.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

_ROOT = Path(__file__).resolve().parent


class BuildProtos(build_py):
    """Compiles millrace/protos/*.proto beside themselves first."""

    def run(self) -> None:
        protos = sorted(str(path.relative_to(_ROOT)) for path in (_ROOT / "millrace" / "protos").glob("*.proto"))
        compiler = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--pyi_out=."]
        subprocess.run([*compiler, *protos], cwd=_ROOT, check=True)
        super().run()


class BuildLibrary(build_ext):
    """Runs CMake; TensorFlow and ctypes load the libraries, no import does, so their names carry no Python tag."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = ext.name.removeprefix("millrace.ops._")
        has_tensorflow = importlib.util.find_spec("tensorflow") is not None
        if target == "millrace_ops" and not has_tensorflow:
            print("setup.py: no TensorFlow here, the library of ops is left out", file=sys.stderr)
            return
        folder = _ROOT / "build" / "cmake"
        configure = ["cmake", "-S", str(_ROOT), "-B", str(folder), "-G", "Ninja"]
        if not (folder / "CMakeCache.txt").exists():
            configure.append("-DMILLRACE_TESTS=OFF")  # `make` turns them on in the same folder
        configure += [f"-DPython3_EXECUTABLE={sys.executable}", f"-DMILLRACE_OPS={'ON' if has_tensorflow else 'OFF'}"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(folder), "--target", target], check=True)
        if not self.inplace:
            library = Path(self.get_ext_fullpath(ext.name))
            library.parent.mkdir(parents=True, exist_ok=True)
            for built in (_ROOT / "ops").glob(f"_{target}.*"):
                self.copy_file(str(built), str(library.with_suffix(built.suffix)))


setup(
    packages=find_packages(include=["millrace", "millrace.*"]),
    package_data={
        "millrace.protos": ["*.proto", "*.pyi"],
        "millrace.pipelines": ["*.yaml"],
        "millrace.runtime": ["poms/*.xml", "patches/*/*.java"],
    },
    ext_modules=[
        Extension("millrace.ops._millrace_records", sources=[], optional=True),
        Extension("millrace.ops._millrace_ops", sources=[], optional=True),
    ],
    cmdclass={"build_py": BuildProtos, "build_ext": BuildLibrary},
)
