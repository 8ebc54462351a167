"""The only place that loads the C++ library; says how to rebuild one that does not fit."""

import functools
import json
import os
from pathlib import Path
from types import ModuleType

import tensorflow as tf

from millrace.runtime.memory import keep_freed_memory

LIBRARY = Path(__file__).with_name("_millrace_ops.so")
BUILD_FACTS = LIBRARY.with_suffix(".json")  # what CMake built it for

REBUILD = "run `make build` with the virtual environment that runs this program"


class LibraryError(ImportError):
    """The op library is missing or was built for another TensorFlow or processor."""


def _describe_tensorflow() -> str:
    return f"TensorFlow {tf.__version__}, CXX11 ABI {tf.sysconfig.CXX11_ABI_FLAG}"


def _processor_lacks(arch: str) -> str:
    """Names a processor feature that `arch` needs and this machine has not; empty when all is well."""
    if arch != "x86-64-v3" or not os.path.exists("/proc/cpuinfo"):
        return ""
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    return next((feature for feature in ("avx2", "bmi2", "fma") if feature not in flags), "")


def check_build(facts: dict) -> None:
    """Raises LibraryError unless a library with these build facts fits this process.

    Args:
      facts: `tensorflow` (version), `cxx11_abi` (0 or 1) and `arch` (-march, may be empty), as CMake wrote them.
    """
    if facts.get("tensorflow") != tf.__version__ or facts.get("cxx11_abi") != tf.sysconfig.CXX11_ABI_FLAG:
        raise LibraryError(
            f"{LIBRARY.name} was built for TensorFlow {facts.get('tensorflow')}, CXX11 ABI {facts.get('cxx11_abi')}, "
            f"but this process has {_describe_tensorflow()}; {REBUILD}"
        )
    lacking = _processor_lacks(facts.get("arch", ""))
    if lacking:
        raise LibraryError(
            f"{LIBRARY.name} was built for {facts['arch']}, but this processor has no {lacking}; "
            f"configure with -DMILLRACE_ARCH=x86-64-v2, or {REBUILD}"
        )


@functools.lru_cache(maxsize=1)
def load() -> ModuleType:
    """Loads the library once; returns the module of its raw ops (`millrace_lookup`, ...).

    Needed before `tf.saved_model.load` of a model that was exported with these ops.

    Raises:
      LibraryError: it is missing or does not fit; the message has TensorFlow's version, the ABI flag and the remedy.
    """
    if not LIBRARY.exists() or not BUILD_FACTS.exists():
        missing = LIBRARY if not LIBRARY.exists() else BUILD_FACTS
        raise LibraryError(f"{missing.name} is not built for {_describe_tensorflow()}; {REBUILD}")
    check_build(json.loads(BUILD_FACTS.read_text()))
    keep_freed_memory()
    try:
        return tf.load_op_library(str(LIBRARY))
    except tf.errors.NotFoundError as error:
        raise LibraryError(
            f"{LIBRARY.name} does not load with {_describe_tensorflow()}: {error.message}; {REBUILD}"
        ) from error
