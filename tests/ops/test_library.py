"""The loader's messages, and the C++ tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from millrace.ops import library

_REPOSITORY = Path(__file__).parents[2]
_FITTING = {"tensorflow": tf.__version__, "cxx11_abi": tf.sysconfig.CXX11_ABI_FLAG, "features": []}


def test_the_library_loads_once() -> None:
    assert library.load() is library.load()


def test_a_build_for_another_tensorflow_says_how_to_rebuild() -> None:
    library.check_build(_FITTING)
    with pytest.raises(
        library.LibraryError, match=f"1.2.3.*but this process has TensorFlow {tf.__version__}.*make build"
    ):
        library.check_build({**_FITTING, "tensorflow": "1.2.3"})
    with pytest.raises(library.LibraryError, match=r"pip install 'tensorflow~=1\.2\.0'"):
        library.check_build({**_FITTING, "tensorflow": "1.2.3"})
    with pytest.raises(library.LibraryError, match="CXX11 ABI 7"):
        library.check_build({**_FITTING, "cxx11_abi": 7})


def test_another_patch_of_the_same_minor_version_fits() -> None:
    major, minor, _ = tf.__version__.split(".", 2)
    library.check_build({**_FITTING, "tensorflow": f"{major}.{minor}.99"})
    with pytest.raises(library.LibraryError):
        library.check_build({**_FITTING, "tensorflow": f"{major}.{int(minor) + 1}.0"})


def test_a_library_of_another_tensorflow_is_one_line_at_the_command_line(tmp_path: Path) -> None:
    program = (
        "import json, sys, pathlib\n"
        "from millrace.cli import main\n"
        "from millrace.ops import library\n"
        "library.BUILD_FACTS = pathlib.Path(sys.argv[1])\n"
        "library.BUILD_FACTS.write_text(json.dumps({'tensorflow': '2.3.4', 'cxx11_abi': 1, 'arch': ''}))\n"
        "ratings = str(library.BUILD_FACTS.parent)\n"
        "assert main.main(['events', 'ratings', ratings, '--ratings', '50']) == 0\n"
        "task = 'millrace.examples.movies:MovieRanking'\n"
        "sys.exit(main.main(['train', '--task', task, '--offline', '--input', ratings]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "facts.json")]
    done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("millrace train: error: ")]
    assert "op library=_millrace_ops.so: built for TensorFlow 2.3.4" in line and "tensorflow~=2.3.0" in line
    assert "Traceback" not in done.stderr


def test_a_missing_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_millrace_ops.so")
    with pytest.raises(
        library.LibraryError,
        match=f"_millrace_ops.so is not in this installation.*TensorFlow {tf.__version__}.*make build",
    ):
        library.load.__wrapped__()


def test_damaged_facts_about_a_build_say_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "BUILD_FACTS", tmp_path / "_millrace_ops.json")
    library.BUILD_FACTS.write_text('{"tensorflow"')
    with pytest.raises(library.LibraryError, match="_millrace_ops.json is damaged.*make build"):
        library.load.__wrapped__()


def test_a_library_for_a_newer_processor_names_what_is_lacking() -> None:
    with pytest.raises(library.LibraryError, match="this one has no avx9000.*without -DMILLRACE_ARCH"):
        library.check_build({**_FITTING, "features": ["avx9000"]})


def test_the_default_build_needs_no_more_of_a_processor_than_tensorflow_does() -> None:
    assert set(json.loads(library.BUILD_FACTS.read_text())["features"]) <= {"sse4_2"}


def test_a_declaration_of_tables_imports_no_tensorflow() -> None:
    program = "import sys, millrace.ops.table_config; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=_REPOSITORY, timeout=60).returncode == 0


def test_every_op_and_its_inputs_are_documented() -> None:
    raw = library.load()
    ops = [name for name in vars(raw) if name.startswith("millrace_") and not name.endswith("_eager_fallback")]
    sources = (_REPOSITORY / "ops/cc/kernels").glob("*_op_defs.cc")
    assert len(ops) == sum(source.read_text().count("REGISTER_OP(") for source in sources)
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
