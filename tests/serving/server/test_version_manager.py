import threading
from collections.abc import Iterator

import pytest

from millrace.runtime.deadline import wait_until
from millrace.serving.server.errors import NotFoundError, UnavailableError
from millrace.serving.server.servable import State
from millrace.serving.server.version_manager import VersionManager
from tests.fakes.servables import FakeLoaders

_SECONDS = 10.0


@pytest.fixture
def loaders() -> FakeLoaders:
    return FakeLoaders()


@pytest.fixture
def manager(loaders: FakeLoaders) -> Iterator[VersionManager]:
    manager = VersionManager(loaders)
    yield manager
    for loader in loaders.made:
        loader.gate.set()
    manager.close()


def _wait(manager: VersionManager, states: dict[int, State]) -> None:
    def there() -> bool:
        found = {status.version: status.state for status in manager.statuses("m")}
        return states.items() <= found.items()

    wait_until(there, _SECONDS, f"{states}", 0.005)


def test_a_new_version_replaces_the_old_one(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.AVAILABLE})
    manager.aspire("m", {2: "/m/2"})
    _wait(manager, {1: State.END, 2: State.AVAILABLE})
    with manager.acquire("m") as servable:
        assert servable == "m:2"
    assert (loaders.of(1).unloads, loaders.of(2).path) == (1, "/m/2")


def test_the_old_version_answers_until_the_new_one_is_loaded(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.AVAILABLE})
    loaders.gated = True
    manager.aspire("m", {2: "/m/2"})
    _wait(manager, {1: State.AVAILABLE, 2: State.LOADING})
    with manager.acquire("m") as servable:
        assert servable == "m:1"
    loaders.of(2).gate.set()
    _wait(manager, {1: State.END, 2: State.AVAILABLE})


def test_unloading_waits_for_the_requests_in_flight(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.AVAILABLE})
    handle = manager.acquire("m", 1)
    manager.aspire("m", {2: "/m/2"})
    _wait(manager, {1: State.UNLOADING, 2: State.AVAILABLE})
    assert loaders.of(1).unloads == 0
    with pytest.raises(NotFoundError):
        manager.acquire("m", 1)
    handle.close()
    handle.close()
    _wait(manager, {1: State.END})
    assert loaders.of(1).unloads == 1


def test_a_version_that_fails_leaves_the_one_before(manager: VersionManager, loaders: FakeLoaders) -> None:
    loaders.failing[2] = "variables.index: checksum differs"
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.AVAILABLE})
    manager.aspire("m", {2: "/m/2"})
    _wait(manager, {1: State.AVAILABLE, 2: State.END})
    assert "variables.index" in manager.statuses("m")[0].error
    assert loaders.of(2).unloads == 0
    with manager.acquire("m") as servable:
        assert servable == "m:1"


def test_a_failed_version_is_tried_again_only_when_asked(manager: VersionManager, loaders: FakeLoaders) -> None:
    loaders.failing[1] = "torn"
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.END})
    loaders.failing.clear()
    manager.aspire("m", {1: "/m/1"})
    assert len(loaders.made) == 1
    manager.aspire("m", {1: "/m/1"}, retry_failed=True)
    _wait(manager, {1: State.AVAILABLE})


def test_an_unloaded_version_can_come_back(manager: VersionManager) -> None:
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.AVAILABLE})
    manager.aspire("m", {})
    _wait(manager, {1: State.END})
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.AVAILABLE})


def test_a_known_model_without_versions_is_unavailable_and_an_unknown_one_not_found(manager: VersionManager) -> None:
    manager.aspire("m", {})
    with pytest.raises(UnavailableError, match="'m' is not loaded yet"):
        manager.acquire("m")
    with pytest.raises(NotFoundError, match="'other'.*models: m"):
        manager.acquire("other")
    with pytest.raises(NotFoundError, match="version 7"):
        manager.acquire("m", 7)


def test_a_forgotten_model_is_unloaded_and_not_found(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.AVAILABLE})
    manager.forget("m")
    wait_until(lambda: loaders.of(1).unloads == 1, _SECONDS, "unload")
    with pytest.raises(NotFoundError):
        manager.acquire("m")
    assert manager.models() == []


def test_two_versions_answer_side_by_side_when_both_are_aspired(manager: VersionManager) -> None:
    manager.aspire("m", {1: "/m/1", 2: "/m/2"})
    _wait(manager, {1: State.AVAILABLE, 2: State.AVAILABLE})
    with manager.acquire("m", 1) as old, manager.acquire("m") as new:
        assert (old, new) == ("m:1", "m:2")


def test_closing_unloads_what_was_still_loading(loaders: FakeLoaders) -> None:
    manager = VersionManager(loaders)
    loaders.gated = True
    manager.aspire("m", {1: "/m/1"})
    wait_until(lambda: loaders.of(1).loads == 1, _SECONDS, "load began", 0.005)
    closing = threading.Thread(target=manager.close)
    closing.start()
    loaders.of(1).gate.set()
    closing.join(_SECONDS)
    assert not closing.is_alive()
    assert loaders.of(1).unloads == 1


def test_no_acquire_fails_through_many_changes_of_version(manager: VersionManager) -> None:
    manager.aspire("m", {1: "/m/1"})
    _wait(manager, {1: State.AVAILABLE})
    stop, failures, asked = threading.Event(), [], [0]

    def ask() -> None:
        while not stop.is_set():
            try:
                with manager.acquire("m"):
                    asked[0] += 1
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(2, 40):
        manager.aspire("m", {version: f"/m/{version}"})
        _wait(manager, {version: State.AVAILABLE})
    stop.set()
    for thread in threads:
        thread.join(_SECONDS)
    assert failures == []
    assert asked[0] > 0


def test_ended_versions_do_not_pile_up(manager: VersionManager) -> None:
    for version in range(1, 20):
        manager.aspire("m", {version: f"/m/{version}"})
        _wait(manager, {version: State.AVAILABLE})
    wait_until(lambda: len(manager.statuses("m")) <= 7, _SECONDS, "few ended versions", 0.005)
