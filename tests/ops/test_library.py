"""The loader's messages, and the C++ tests."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from millrace.ops import library

_REPOSITORY = Path(__file__).parents[2]
_FITTING = {"tensorflow": tf.__version__, "cxx11_abi": tf.sysconfig.CXX11_ABI_FLAG, "arch": ""}


def test_the_library_loads_once() -> None:
    assert library.load() is library.load()


def test_a_build_for_another_tensorflow_says_how_to_rebuild() -> None:
    library.check_build(_FITTING)
    with pytest.raises(
        library.LibraryError, match=f"1.2.3.*but this process has TensorFlow {tf.__version__}.*make build"
    ):
        library.check_build({**_FITTING, "tensorflow": "1.2.3"})
    with pytest.raises(library.LibraryError, match="CXX11 ABI 7"):
        library.check_build({**_FITTING, "cxx11_abi": 7})


def test_a_missing_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_millrace_ops.so")
    with pytest.raises(
        library.LibraryError, match=f"_millrace_ops.so is not built for TensorFlow {tf.__version__}.*make build"
    ):
        library.load.__wrapped__()


def test_a_library_for_a_newer_processor_names_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_processor_lacks", lambda arch: "avx2")
    with pytest.raises(library.LibraryError, match="x86-64-v3.*no avx2.*MILLRACE_ARCH=x86-64-v2"):
        library.check_build({**_FITTING, "arch": "x86-64-v3"})


def test_a_declaration_of_tables_imports_no_tensorflow() -> None:
    program = "import sys, millrace.ops.table_config; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=_REPOSITORY, timeout=60).returncode == 0


def test_every_op_and_its_inputs_are_documented() -> None:
    raw = library.load()
    ops = [name for name in vars(raw) if name.startswith("millrace_") and not name.endswith("_eager_fallback")]
    assert len(ops) == (_REPOSITORY / "ops/cc/kernels/op_defs.cc").read_text().count("REGISTER_OP(")
    for name in ops:
        assert (getattr(raw, name).__doc__ or "").splitlines()[0].rstrip().endswith((".", "...")), name


def test_the_cpp_tests_pass() -> None:
    folder = _REPOSITORY / "build" / "cmake"
    build = subprocess.run(
        ["cmake", "--build", folder, "--target", "embedding_test"], capture_output=True, text=True, timeout=250
    )
    remedy = "the C++ tests do not build: install libgtest-dev, then run `make build test-cc`"
    assert build.returncode == 0, f"{remedy}\n{build.stdout[-3000:]}{build.stderr[-1000:]}"
    done = subprocess.run([folder / "embedding_test", "--gtest_brief=1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-5000:]
