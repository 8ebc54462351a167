from collections.abc import Mapping
from pathlib import Path

import pytest

from millrace.serving.server.errors import InvalidRequestError
from millrace.serving.server.model_source import All, DirectorySource, Latest, ModelConfig, Specific, versions_in
from millrace.serving.server.servable import VersionSource


class _Aspired:
    def __init__(self) -> None:
        self.versions: dict[str, dict[int, VersionSource]] = {}
        self.retried: list[bool] = []

    def aspire(self, name: str, versions: Mapping[int, VersionSource], retry_failed: bool = False) -> None:
        self.versions[name] = dict(versions)
        self.retried.append(retry_failed)

    def forget(self, name: str) -> None:
        del self.versions[name]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("9", "10", "temp-11", "manifests", "-3", "1.5"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file is no version")
    return tmp_path


def _source(policy: Latest | All | Specific, base: Path, failed: set[int]) -> tuple[DirectorySource, _Aspired]:
    aspired = _Aspired()
    source = DirectorySource(aspired, lambda name, version: version in failed)
    source.configure({"m": ModelConfig("m", str(base), policy)})
    return source, aspired


def test_versions_are_numbers_and_only_folders(base: Path) -> None:
    assert set(versions_in(base)) == {9, 10}
    assert versions_in(base / "absent") == {}


@pytest.mark.parametrize(
    ("policy", "expected"), [(Latest(), {10}), (Latest(2), {9, 10}), (All(), {9, 10}), (Specific((9, 77)), {9, 77})]
)
def test_the_policy_picks_versions(base: Path, policy: Latest | All | Specific, expected: set[int]) -> None:
    _, aspired = _source(policy, base, set())
    assert set(aspired.versions["m"]) == expected


def test_a_new_folder_is_aspired_at_the_next_poll(base: Path) -> None:
    source, aspired = _source(Latest(), base, set())
    (base / "11").mkdir()
    source.poll()
    assert aspired.versions["m"] == {11: VersionSource(str(base / "11"))}


def test_latest_falls_back_to_the_version_before_a_failed_one(base: Path) -> None:
    failed: set[int] = set()
    source, aspired = _source(Latest(), base, failed)
    failed.add(10)
    source.poll()
    assert set(aspired.versions["m"]) == {9}


def test_a_configuration_tries_failed_versions_again_and_a_poll_does_not(base: Path) -> None:
    source, aspired = _source(Latest(), base, {10})
    assert set(aspired.versions["m"]) == {10}
    source.poll()
    assert aspired.retried == [True, False]


def test_a_model_that_is_not_in_the_new_configuration_is_forgotten(base: Path) -> None:
    source, aspired = _source(Latest(), base, set())
    source.configure({"other": ModelConfig("other", str(base), labels={"stable": 9})})
    assert set(aspired.versions) == {"other"}
    assert source.label("other", "stable") == 9
    assert source.label("other", "canary") is None


def test_plans_of_two_models_leave_each_other_and_the_list_alone(base: Path) -> None:
    source, aspired = _source(Latest(), base, set())
    source.plan(ModelConfig("a", str(base), Specific((9,))))
    source.plan(ModelConfig("b", str(base), Specific((10,)), as_of_ms=5))
    assert aspired.versions["a"] == {9: VersionSource(str(base / "9"))}
    assert aspired.versions["b"] == {10: VersionSource(str(base / "10"), 5)}
    source.configure({})
    assert set(aspired.versions) == {"a", "b"}
    source.drop("a")
    assert set(aspired.versions) == {"b"}


def test_a_plan_takes_a_model_out_of_the_list_which_cannot_take_it_back(base: Path) -> None:
    source, aspired = _source(Latest(), base, set())
    source.plan(ModelConfig("m", str(base), Specific((9,))))
    with pytest.raises(InvalidRequestError, match="an agent has configured: m"):
        source.configure({"m": ModelConfig("m", str(base))})
    source.configure({})
    assert set(aspired.versions["m"]) == {9}
