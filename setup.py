"""Builds what is not Python: protos by grpcio-tools, the C++ library by CMake and Ninja. The rest is pyproject.toml.

Also what Beam's `--setup_file` ships to its workers. They need no TensorFlow; without it the C++ library, which is
compiled against it, is left out, and only `ops/library.py` misses it.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

_ROOT = Path(__file__).resolve().parent
_PACKAGES = ("protos", "runtime", "ops", "transforms", "training", "pipelines", "serving", "cli", "examples")


class BuildProtos(build_py):
    """Compiles protos/*.proto beside themselves first."""

    def run(self) -> None:
        protos = sorted(str(path.relative_to(_ROOT)) for path in (_ROOT / "protos").glob("*.proto"))
        compiler = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--pyi_out=."]
        subprocess.run([*compiler, *protos], cwd=_ROOT, check=True)
        super().run()


class BuildLibrary(build_ext):
    """Runs CMake; the library is loaded by TensorFlow, not imported, so its name carries no Python tag."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        if importlib.util.find_spec("tensorflow") is None:
            print("setup.py: no TensorFlow here, the C++ library is left out", file=sys.stderr)
            return
        folder = _ROOT / "build" / "cmake"
        configure = ["cmake", "-S", str(_ROOT), "-B", str(folder), "-G", "Ninja"]
        if not (folder / "CMakeCache.txt").exists():
            configure.append("-DMILLRACE_TESTS=OFF")  # `make` turns them on in the same folder
        subprocess.run([*configure, f"-DPython3_EXECUTABLE={sys.executable}"], check=True)
        subprocess.run(["cmake", "--build", str(folder), "--target", "millrace_ops"], check=True)
        if not self.inplace:
            library = Path(self.get_ext_fullpath(ext.name))
            library.parent.mkdir(parents=True, exist_ok=True)
            for suffix in (".so", ".json"):
                built = _ROOT / "ops" / f"_millrace_ops{suffix}"
                self.copy_file(str(built), str(library.with_suffix(suffix)))


setup(
    packages=find_packages(include=[pattern for name in _PACKAGES for pattern in (name, f"{name}.*")]),
    package_data={"protos": ["*.proto", "*.pyi"], "runtime": ["poms/*.xml"]},
    ext_modules=[Extension("ops._millrace_ops", sources=[], optional=True)],
    cmdclass={"build_py": BuildProtos, "build_ext": BuildLibrary},
)
