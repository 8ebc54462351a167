"""Loads the library of TensorFlow ops, and says what helps where it is missing or does not fit this process."""

import functools
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow as tf

from millrace.runtime.errors import UserError
from millrace.runtime.memory import keep_freed_memory

LIBRARY = Path(__file__).with_name("_millrace_ops.so")
BUILD_FACTS = LIBRARY.with_suffix(".json")  # what CMake built it for

REBUILD = "run `make build` in a checkout, or `pip install --no-build-isolation --no-deps` of the sdist"


class LibraryError(UserError):
    """The op library is missing, or it was built for another TensorFlow or processor."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__("op library", LIBRARY.name, problem, remedy)


def _minor(version: str) -> str:
    """2.21 of 2.21.3. TensorFlow's C++ interface changes with its minor version, not with its patches."""
    return ".".join(version.split(".")[:2])


def _describe_tensorflow() -> str:
    return f"TensorFlow {tf.__version__}, CXX11 ABI {tf.sysconfig.CXX11_ABI_FLAG}"


def _processor_lacks(features: list[str]) -> str:
    """The first of these processor features that this machine has not; empty when it has all, or cannot say."""
    if not os.path.exists("/proc/cpuinfo"):
        return ""
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    return next((feature for feature in features if feature not in flags), "")


def check_build(facts: dict[str, Any]) -> None:
    """Raises LibraryError unless a library with these build facts fits this process.

    Args:
      facts: `tensorflow` (version; its patch number does not matter), `cxx11_abi` (0 or 1) and `features` (of the
        processor, which the compiler was told to use), as CMake wrote them.
    """
    built_for = str(facts.get("tensorflow"))
    if _minor(built_for) != _minor(tf.__version__) or facts.get("cxx11_abi") != tf.sysconfig.CXX11_ABI_FLAG:
        raise LibraryError(
            f"built for TensorFlow {built_for}, CXX11 ABI {facts.get('cxx11_abi')}, but this process has "
            f"{_describe_tensorflow()}",
            f"`pip install 'tensorflow~={_minor(built_for)}.0'`, or to build it for this TensorFlow {REBUILD}",
        )
    lacking = _processor_lacks(facts.get("features", []))
    if lacking:
        raise LibraryError(
            f"built for another processor: this one has no {lacking}",
            f"{REBUILD}, without -DMILLRACE_ARCH, whose default fits every machine",
        )


@functools.lru_cache(maxsize=1)
def load() -> ModuleType:
    """Loads the library once; returns the module of its raw ops (`millrace_lookup`, ...).

    `tf.saved_model.load` of a model that was exported with these ops needs this call first.

    Raises:
      LibraryError: it is missing or does not fit; the message has TensorFlow's version, the ABI flag and the remedy.
    """
    for file in (LIBRARY, BUILD_FACTS):
        if not file.exists():
            raise LibraryError(f"{file.name} is not in this installation, which has {_describe_tensorflow()}", REBUILD)
    try:
        facts = json.loads(BUILD_FACTS.read_text("utf-8"))
    except ValueError as error:
        raise LibraryError(f"{BUILD_FACTS.name} is damaged: {error}", REBUILD) from error
    check_build(facts)
    keep_freed_memory()
    try:
        return tf.load_op_library(str(LIBRARY))
    except tf.errors.NotFoundError as error:
        raise LibraryError(f"does not load with {_describe_tensorflow()}: {error.message}", REBUILD) from error
