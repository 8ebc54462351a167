"""What the build files name exists: paths, commands, versions."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from millrace.runtime.servers.artifacts import PRISM_VERSION

_ROOT = Path(__file__).resolve().parents[1]
_DOCKERFILE = (_ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))
# Commands of the base image and of Debian.
_IMAGE_COMMANDS = {"pip", "python", "apt-get"}


def _instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.+)$", _DOCKERFILE, re.MULTILINE)


def _pins() -> dict[str, str]:
    lines = (_ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {pin.name: next(iter(pin.specifier)).version for pin in here}


def _build_backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(_ROOT / "build_tools")
    return importlib.import_module("build_backend")


def test_the_dockerfile_has_the_three_targets_on_stages_of_its_own() -> None:
    names = re.findall(r"^FROM \S+ AS (\S+)$", _DOCKERFILE, re.MULTILINE)
    assert {"beam-worker", "trainer", "server"} <= set(names)
    for source in re.findall(r"--from=(\S+)", _DOCKERFILE):
        assert source in names or ":" in source


def test_every_path_that_the_dockerfile_copies_from_the_checkout_exists() -> None:
    for copy in _instructions("COPY"):
        if copy.startswith("--from"):
            continue
        *sources, _ = copy.split()
        for source in sources:
            assert (_ROOT / source).exists(), source


def test_every_command_of_the_dockerfile_exists() -> None:
    for line in _instructions("RUN"):
        for command in re.split(r"&&|;", line):
            assert command.split()[0] in _IMAGE_COMMANDS, command
    for line in _instructions("CMD"):
        assert importlib.util.find_spec(f"millrace.cli.{json.loads(line)[0]}") is not None, line
    assert _PROJECT["project"]["scripts"]["millrace"] == "millrace.cli.main:run"
    entries = {json.loads(line)[0] for line in _instructions("ENTRYPOINT")}
    assert entries == {"millrace", "/opt/apache/beam/boot"}


def test_the_images_take_python_and_beam_in_the_versions_that_are_pinned() -> None:
    beam = _pins()["apache-beam"]
    assert f"apache/beam_python3.11_sdk:{beam}" in _DOCKERFILE
    assert "FROM python:3.11-" in _DOCKERFILE and "3.11.0" in SpecifierSet(_PROJECT["project"]["requires-python"])
    assert beam == PRISM_VERSION


def test_every_dependency_is_pinned_to_a_version_that_fits() -> None:
    project = _PROJECT["project"]
    pins = _pins()
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    for requirement in map(Requirement, [*project["dependencies"], *extras, *_PROJECT["build-system"]["requires"]]):
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} but {pinned} is pinned"


def test_the_packages_that_run_here_are_those_that_are_pinned() -> None:
    differing = {}
    for name, pinned in _pins().items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "not installed"
        if installed != pinned:
            differing[name] = (pinned, installed)
    assert differing == {}, "run `make setup`, or `make lock` after a change of dependencies"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    return _unpacked_sdist(tmp_path_factory.mktemp("sdist"), {})


def _unpacked_sdist(folder: Path, variables: dict[str, str]) -> Path:
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(folder), "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=_ROOT, env=os.environ | variables, capture_output=True, timeout=120, check=True)
    (archive,) = folder.glob("millrace-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def test_an_sdist_holds_real_files_and_no_tests(source: Path) -> None:
    assert not [path for path in source.rglob("*") if path.is_symlink()]
    assert not (source / "tests").exists() and not list(source.rglob("*.so"))
    for path in (_ROOT / "millrace").iterdir():
        assert (source / "millrace" / path.name).exists() or path.name == "__pycache__", path.name
    for name in _package_data():
        assert (source / "millrace" / name).is_file(), name


def _package_data() -> list[str]:
    """Files of the package that are no modules, by their path below millrace/."""
    folders = [path.resolve() for path in (_ROOT / "millrace").iterdir() if path.is_symlink()]
    suffixes = (".yaml", ".proto", ".xml", ".java")
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]
    assert len(files) > 10
    return [str(path.relative_to(_ROOT)) for path in files]


def test_cmake_configures_an_sdist(source: Path, tmp_path: Path) -> None:
    switches = ["-DMILLRACE_TESTS=OFF", "-DMILLRACE_OPS=OFF", f"-DMILLRACE_OUTPUT_DIR={tmp_path}"]
    command = ["cmake", "-S", str(source), "-B", str(tmp_path / "build"), "-G", "Ninja", *switches]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_an_sdist_says_whether_its_wheels_have_the_op_library(source: Path, tmp_path: Path) -> None:
    assert not (source / "without-ops").exists()
    assert (_unpacked_sdist(tmp_path, {"MILLRACE_WITHOUT_OPS": "1"}) / "without-ops").exists()


def test_a_users_folders_of_our_names_do_not_meet_ours(tmp_path: Path) -> None:
    for name in ("ops", "serving", "runtime"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('nothing of ours imports this')")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").touch()
    (tmp_path / "training" / "shop.py").write_text(
        "from millrace.examples.movies import MovieRanking\nclass Shop(MovieRanking):\n    name = 'shop'\n"
    )
    program = "from millrace.training.task import load_task; print(load_task('training.shop:Shop').name)"
    # -P: like the installed command, Python does not put the working folder on its path by itself.
    command = [sys.executable, "-P", "-c", program]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "shop\n", done.stderr


def test_a_build_asks_for_what_the_libraries_need_and_this_machine_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = _build_backend(monkeypatch)
    monkeypatch.setattr(backend.shutil, "which", lambda name: None if name == "ninja" else f"/usr/bin/{name}")
    monkeypatch.delenv("MILLRACE_WITHOUT_OPS", raising=False)
    declared = _PROJECT["project"]["dependencies"]
    (tensorflow,) = (text for text in declared if text.startswith("tensorflow~"))
    (protobuf,) = (text for text in declared if text.startswith("protobuf"))
    assert backend._needs_of_libraries() == ["ninja", tensorflow, protobuf]
    monkeypatch.setenv("MILLRACE_WITHOUT_OPS", "1")
    assert backend._needs_of_libraries() == ["ninja"]
    monkeypatch.delenv("MILLRACE_WITHOUT_OPS")
    monkeypatch.setattr(backend, "ROOT", tmp_path)
    (tmp_path / backend.WITHOUT_OPS_MARK).touch()
    assert backend.leaves_ops_out(), "an sdist that was made under the variable"


@pytest.mark.parametrize(
    ("programs", "problem"),
    [
        ({}, "cmake is not on PATH.*apt-get install cmake"),
        ({"cmake"}, "ninja is not on PATH.*apt-get install ninja-build"),
        ({"cmake", "ninja"}, "there is no C.. compiler on PATH.*apt-get install g...*set CXX"),
        ({"cmake", "ninja", "g++"}, "cannot import TensorFlow.*pip install 'tensorflow~=.*MILLRACE_WITHOUT_OPS=1"),
    ],
)
def test_a_build_without_its_tools_ends_in_one_line(programs: set[str], problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in programs:
        (folder / name).write_text("#!/bin/sh\nexit 9\n")
        (folder / name).chmod(0o755)
    # A module that cannot be imported stands in for a TensorFlow that is not installed.
    (tmp_path / "tensorflow.py").write_text("raise ImportError")
    command = [sys.executable, "setup.py", "-q", "build_ext", "-b", str(tmp_path / "lib"), "-t", str(tmp_path / "temp")]
    environment = {"PATH": str(folder), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert re.search(f"^error: .*{problem}", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("lib/**/*.so"))


def test_the_images_get_a_wheel_that_was_built_from_an_sdist() -> None:
    build = " ".join(_instructions("RUN"))
    assert re.search(r"setup\.py -q sdist -d (\S+) .*pip wheel .*\1/millrace-\*\.tar\.gz", build)
    assert _DOCKERFILE.count("/wheels/millrace-*.whl") == 2


def test_scripts_are_executable_and_fail_on_the_first_error() -> None:
    scripts = [path for path in (_ROOT / "build_tools").iterdir() if path.is_file() and not path.suffix]
    for path in [*scripts, _ROOT / ".ci" / "run"]:
        lines = path.read_text("utf-8").splitlines()
        assert path.stat().st_mode & 0o111, path
        assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines, path


def test_the_linters_get_every_folder_with_python_files() -> None:
    makefile = (_ROOT / "Makefile").read_text("utf-8")
    (named,) = re.findall(r"^python_folders := (.+)$", makefile, re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=_ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git checkout")
    # millrace/ holds links to the others, protos/ what the compiler writes.
    tops = {line.partition("/")[0] for line in tracked.stdout.splitlines()} - {"millrace", "protos"}
    assert set(named.split()) >= tops and all((_ROOT / name).exists() for name in named.split())


def test_every_file_that_the_makefile_names_exists() -> None:
    makefile = (_ROOT / "Makefile").read_text("utf-8")
    for path in re.findall(r"build_tools/\w+(?:\.py)?", makefile):
        assert (_ROOT / path).exists(), path
