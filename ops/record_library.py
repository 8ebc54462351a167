"""Loads the C++ library of records, which needs no TensorFlow; says how to rebuild one that does not fit."""

import ctypes
import functools
from pathlib import Path

LIBRARY = Path(__file__).with_name("_millrace_records.so")
VERSION = 1  # of ops/cc/records/version.cc


class RecordLibraryError(ImportError):
    """The library is missing or was built from other sources."""


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library, loaded once a process. RecordLibraryError when it is missing or does not fit."""
    if not LIBRARY.exists():
        raise RecordLibraryError(f"{LIBRARY.name} is not built; run `make build`")
    library = ctypes.CDLL(str(LIBRARY))
    found = library.millrace_records_version()
    if found != VERSION:
        raise RecordLibraryError(f"{LIBRARY.name} has version {found}, expected {VERSION}; run `make build`")
    return library
