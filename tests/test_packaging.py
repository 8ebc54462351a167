"""What the build files name exists: paths, commands, versions."""

import importlib.util
import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from millrace.runtime.artifacts import PRISM_VERSION

_ROOT = Path(__file__).resolve().parents[1]
_DOCKERFILE = (_ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))
# Commands of the base image and of Debian.
_IMAGE_COMMANDS = {"pip", "apt-get"}


def _instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.+)$", _DOCKERFILE, re.MULTILINE)


def _pins() -> dict[str, str]:
    lines = (_ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


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


def test_scripts_are_executable_and_fail_on_the_first_error() -> None:
    scripts = [path for path in (_ROOT / "build_tools").iterdir() if path.is_file() and not path.suffix]
    for path in [*scripts, _ROOT / ".ci" / "run"]:
        lines = path.read_text("utf-8").splitlines()
        assert path.stat().st_mode & 0o111, path
        assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines, path


def test_every_file_that_the_makefile_names_exists() -> None:
    makefile = (_ROOT / "Makefile").read_text("utf-8")
    for path in re.findall(r"build_tools/\w+(?:\.py)?", makefile):
        assert (_ROOT / path).exists(), path
