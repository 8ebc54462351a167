"""The build backend: setuptools', which asks in addition for what the C++ libraries need and this machine lacks.

TensorFlow is no static requirement of the build: neither an sdist nor a build without the op library needs its 600 MB.
"""

import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_OPS = "MILLRACE_WITHOUT_OPS"
# Lies in an sdist that was made with the variable set: Beam's workers build that sdist and do not see the variable.
WITHOUT_OPS_MARK = "without-ops"


def leaves_ops_out() -> bool:
    """Whether the user asked for a build without the op library, which only processes with TensorFlow load."""
    return os.environ.get(WITHOUT_OPS) == "1" or (ROOT / WITHOUT_OPS_MARK).exists()


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Packages that pip installs for the build: TensorFlow, and CMake and Ninja where they are not on PATH."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_needs_of_libraries()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same as for a wheel."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_needs_of_libraries()]


def _needs_of_libraries() -> list[str]:
    # Debian 12 has CMake 3.25; the packages of these names on PyPI hold the programs.
    programs = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    # protobuf: pip would choose a newer one for TensorFlow than the static requirement grpcio-tools works with.
    return (
        programs
        if leaves_ops_out()
        else [*programs, project_requirement("tensorflow"), project_requirement("protobuf")]
    )


def project_requirement(package: str) -> str:
    """What pyproject.toml says of `package`: the op library needs the minor version of TensorFlow that will load it."""
    dependencies: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    return next(text for text in dependencies if re.split(r"[^\w-]", text)[0] == package)
