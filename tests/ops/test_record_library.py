"""The types that Python spells for the C functions of the records library, against the header that declares them."""

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from millrace.ops import record_library

_HEADER = Path(__file__).parents[2] / "ops/cc/records/c_api.h"
_RESULTS = {"int32_t": ctypes.c_int32, "const char*": ctypes.c_char_p}
_NUMBERS = {"int32_t": "i", "int64_t": "q", "double": "d"}


def _declared() -> dict[str, tuple[str, list[str]]]:
    """name -> (type of the result, types of the arguments) of every function of the header."""
    text = re.sub(r"//[^\n]*", "", _HEADER.read_text())
    found = re.findall(r"MILLRACE_C_API ([\w ]+\*?) (millrace_\w+)\(([^)]*)\);", text)
    assert len(found) == text.count("MILLRACE_C_API ") - text.count("#define MILLRACE_C_API ")
    return {
        name: (result, [re.sub(r"\s*\b\w+$", "", each.strip()) for each in arguments.split(",") if each.strip()])
        for result, name, arguments in found
    }


def test_every_function_has_the_argument_types_that_the_header_declares() -> None:
    spelt = {
        name: "".join("p" if "*" in type else _NUMBERS[type] for type in arguments)
        for name, (_, arguments) in _declared().items()
    }
    assert spelt == record_library.SIGNATURES


def test_every_function_of_the_library_returns_what_the_header_declares() -> None:
    library = record_library.load()
    for name, (result, arguments) in _declared().items():
        function = getattr(library, name)
        assert function.restype is _RESULTS[result], name
        assert len(function.argtypes) == len(arguments), name


def test_the_library_exports_no_function_that_the_header_lacks() -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", record_library.LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r" T (millrace_\w+)", symbols)) == set(_declared())


def test_a_format_that_does_not_exist_is_refused() -> None:
    batch = pa.record_batch({"a": pa.array([[1]], pa.list_(pa.int64()))})
    with pytest.raises(ValueError, match="no such format"):
        record_library.encode_protos(batch, 7, 1)
    raw = pa.schema(
        [
            ("value", pa.binary()),
            ("partition", pa.int64()),
            ("offset", pa.int64()),
            ("index", pa.int32()),
            ("key", pa.uint32()),
        ]
    )
    block = pa.RecordBatch.from_pylist([{"value": b"x", "partition": 0, "offset": 0}], raw)
    with pytest.raises(ValueError, match="no such format"):
        record_library.decode_protos(block, 7, False, 0, -1, 1, None)


def test_a_file_that_is_no_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_library, "LIBRARY", tmp_path / "_millrace_records.so")
    record_library.LIBRARY.write_bytes(b"no library")
    with pytest.raises(record_library.RecordLibraryError, match="does not load.*make build"):
        record_library.load.__wrapped__()


class _Failing:
    """A library whose only function returns one status."""

    def __init__(self, status: int) -> None:
        self.millrace_siphash24 = lambda *_: status


def test_a_call_that_fails_is_a_python_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_library, "load", lambda: _Failing(record_library.OUT_OF_MEMORY))
    with pytest.raises(MemoryError, match="millrace_siphash24"):
        record_library.siphash24(np.zeros(1, np.int64), np.zeros(0, np.uint8), bytes(16))
    monkeypatch.setattr(record_library, "load", lambda: _Failing(4))
    with pytest.raises(RuntimeError, match="millrace_siphash24 failed"):
        record_library.siphash24(np.zeros(1, np.int64), np.zeros(0, np.uint8), bytes(16))
