import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.runtime.deadline import wait_until
from millrace.serving.agent.desired_state import Target
from millrace.serving.agent.reconciler import make_plan
from millrace.serving.server.errors import NotFoundError, UnavailableError
from millrace.serving.server.servable import State, VersionSource
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


def _at(*versions: int, base: str = "/m", as_of_ms: int | None = None) -> dict[int, VersionSource]:
    return {version: VersionSource(f"{base}/{version}", as_of_ms) for version in versions}


def _is_unknown(manager: VersionManager) -> bool:
    try:
        manager.statuses("m")
    except NotFoundError:
        return True
    return False


def _wait(manager: VersionManager, states: dict[int, State]) -> None:
    def there() -> bool:
        found = {status.version: status.state for status in manager.statuses("m")}
        return states.items() <= found.items()

    wait_until(there, _SECONDS, f"{states}", 0.005)


def test_a_new_version_replaces_the_old_one(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    manager.aspire("m", _at(2))
    _wait(manager, {1: State.END, 2: State.AVAILABLE})
    with manager.acquire("m") as servable:
        assert servable == "m:2"
    assert (loaders.of(1).unloads, loaders.of(2).source.path) == (1, "/m/2")


def test_the_old_version_answers_until_the_new_one_is_loaded(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    loaders.gated = True
    manager.aspire("m", _at(2))
    _wait(manager, {1: State.AVAILABLE, 2: State.LOADING})
    with manager.acquire("m") as servable:
        assert servable == "m:1"
    loaders.of(2).gate.set()
    _wait(manager, {1: State.END, 2: State.AVAILABLE})


def test_unloading_waits_for_the_requests_in_flight(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    handle = manager.acquire("m", 1)
    manager.aspire("m", _at(2))
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
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    manager.aspire("m", _at(2))
    _wait(manager, {1: State.AVAILABLE, 2: State.END})
    assert "variables.index" in manager.statuses("m")[0].error
    assert loaders.of(2).unloads == 0
    with manager.acquire("m") as servable:
        assert servable == "m:1"


def test_a_failed_version_is_tried_again_only_when_asked(manager: VersionManager, loaders: FakeLoaders) -> None:
    loaders.failing[1] = "torn"
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.END})
    loaders.failing.clear()
    manager.aspire("m", _at(1))
    assert len(loaders.made) == 1
    manager.aspire("m", _at(1), retry_failed=True)
    _wait(manager, {1: State.AVAILABLE})


def test_an_unloaded_version_can_come_back(manager: VersionManager) -> None:
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    manager.aspire("m", {})
    _wait(manager, {1: State.END})
    manager.aspire("m", _at(1))
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
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    manager.forget("m")
    wait_until(lambda: loaders.of(1).unloads == 1, _SECONDS, "unload")
    with pytest.raises(NotFoundError):
        manager.acquire("m")
    wait_until(lambda: _is_unknown(manager), _SECONDS, "nothing is known of it", 0.005)


def test_two_versions_answer_side_by_side_when_both_are_aspired(manager: VersionManager) -> None:
    manager.aspire("m", _at(1, 2))
    _wait(manager, {1: State.AVAILABLE, 2: State.AVAILABLE})
    with manager.acquire("m", 1) as old, manager.acquire("m") as new:
        assert (old, new) == ("m:1", "m:2")


def test_closing_unloads_what_was_still_loading(loaders: FakeLoaders) -> None:
    manager = VersionManager(loaders)
    loaders.gated = True
    manager.aspire("m", _at(1))
    wait_until(lambda: loaders.of(1).loads == 1, _SECONDS, "load began", 0.005)
    closing = threading.Thread(target=manager.close)
    closing.start()
    loaders.of(1).gate.set()
    closing.join(_SECONDS)
    assert not closing.is_alive()
    assert loaders.of(1).unloads == 1


def test_no_acquire_fails_through_many_changes_of_version(manager: VersionManager) -> None:
    manager.aspire("m", _at(1))
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
        manager.aspire("m", _at(version))
        _wait(manager, {version: State.AVAILABLE})
    stop.set()
    for thread in threads:
        thread.join(_SECONDS)
    assert failures == []
    assert asked[0] > 0


def test_ended_versions_do_not_pile_up(manager: VersionManager) -> None:
    for version in range(1, 20):
        manager.aspire("m", _at(version))
        _wait(manager, {version: State.AVAILABLE})
    wait_until(lambda: len(manager.statuses("m")) <= 7, _SECONDS, "few ended versions", 0.005)


def test_a_load_that_takes_longer_than_the_next_version_is_not_in_vain(
    manager: VersionManager, loaders: FakeLoaders
) -> None:
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    loaders.gated = True
    manager.aspire("m", _at(1, 2))
    _wait(manager, {2: State.LOADING})
    manager.aspire("m", _at(1, 3))  # what an agent says: the newest, and what answers
    loaders.of(2).gate.set()
    _wait(manager, {2: State.AVAILABLE, 3: State.LOADING})
    with manager.acquire("m") as servable:
        assert servable == "m:2"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["export", "agent", "agent", "load ends"]), min_size=20, max_size=60))
def test_with_any_load_times_the_served_version_advances_and_memory_is_bounded(events: list[str]) -> None:
    loaders = FakeLoaders(gated=True)
    manager = VersionManager(loaders)
    newest, served = 1, 0

    def loading() -> list[int]:
        return [status.version for status in manager.statuses("m") if status.state is State.LOADING]

    def settled() -> bool:
        states = {status.state for status in manager.statuses("m")}
        return State.UNLOADING not in states and (State.LOADING in states or State.START not in states)

    try:
        manager.aspire("m", {})
        for event in [*events, *["agent", "load ends"] * 3]:
            if event == "export":
                newest += 1
            elif event == "agent":
                target = Target(newest, Path(f"/m/{newest}"))
                plan = make_plan(target, False, manager.statuses("m"), range(max(1, newest - 2), newest + 1))
                manager.aspire("m", _at(*(plan.versions or ())))
            elif number := max(loading(), default=0):
                wait_until(lambda n=number: loaders.of(n).loads == 1, _SECONDS, "the load", 0.001)  # type: ignore[misc]
                loaders.of(number).gate.set()
                wait_until(lambda n=number: n not in loading(), _SECONDS, "the end of the load", 0.001)  # type: ignore[misc]
                wait_until(settled, _SECONDS, "the unloads", 0.001)
                handle = manager.acquire("m")
                handle.close()
                assert handle.id.version >= max(served, number)
                served = handle.id.version
            wait_until(settled, _SECONDS, "quiet", 0.001)
            assert loaders.in_memory() <= 3
        assert served == newest
    finally:
        for loader in loaders.made:
            loader.gate.set()
        manager.close()
    assert loaders.in_memory() == 0


def test_a_held_version_replaces_a_newer_one_without_a_gap(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", _at(2))
    _wait(manager, {2: State.AVAILABLE})
    loaders.gated = True
    manager.aspire("m", _at(1, as_of_ms=100))
    _wait(manager, {1: State.LOADING, 2: State.AVAILABLE})
    with manager.acquire("m") as servable:
        assert servable == "m:2"
    loaders.of(1).gate.set()
    _wait(manager, {1: State.AVAILABLE, 2: State.END})
    assert loaders.of(1).source.as_of_ms == 100
    assert manager.statuses("m")[1].is_held


def test_a_version_that_has_taken_later_deltas_is_loaded_anew_for_a_hold(
    manager: VersionManager, loaders: FakeLoaders
) -> None:
    manager.aspire("m", _at(2))
    _wait(manager, {2: State.AVAILABLE})
    first = loaders.of(2)
    first.newest_ms = 200
    manager.aspire("m", _at(2, as_of_ms=100))
    wait_until(lambda: first.unloads == 1, _SECONDS, "the first load is gone", 0.005)
    second = loaders.of(2)
    assert (second.loads, second.source.as_of_ms) == (1, 100)
    manager.acquire("m").close()
    assert [
        (status.version, status.is_held) for status in manager.statuses("m") if status.state is State.AVAILABLE
    ] == [(2, True)]


def test_a_hold_of_what_is_loaded_begins_and_ends_in_place(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", _at(2))
    _wait(manager, {2: State.AVAILABLE})
    loaders.of(2).newest_ms = 50
    manager.aspire("m", _at(2, as_of_ms=100))
    assert manager.statuses("m")[0].is_held
    manager.aspire("m", _at(2))
    assert not manager.statuses("m")[0].is_held
    assert [loader.loads for loader in loaders.made if loader.loads] == [1]


def test_a_version_of_the_same_number_from_another_folder_is_another_one(
    manager: VersionManager, loaders: FakeLoaders
) -> None:
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    first = loaders.of(1)
    manager.aspire("m", _at(1, base="/other"))
    wait_until(lambda: first.unloads == 1, _SECONDS, "the first folder is gone", 0.005)
    assert loaders.of(1).source.path == "/other/1"
    manager.acquire("m", 1).close()


def test_a_refused_version_is_tried_again_at_once_and_then_with_growing_pauses(loaders: FakeLoaders) -> None:
    now = [0.0]
    manager = VersionManager(loaders, clock=lambda: now[0])
    loaders.failing[1] = "torn"
    try:
        for second in range(100):
            now[0] = float(second)
            manager.aspire("m", _at(1), retry_failed=True)
            _wait(manager, {1: State.END})
        assert 6 <= sum(loader.loads for loader in loaders.made) <= 9
    finally:
        manager.close()


def test_unloads_do_not_wait_behind_loads_of_other_models(manager: VersionManager, loaders: FakeLoaders) -> None:
    manager.aspire("m", _at(1))
    _wait(manager, {1: State.AVAILABLE})
    old = loaders.of(1)
    loaders.gated = True
    for name in ("a", "b"):  # as many as there are threads for loads
        manager.aspire(name, {7: VersionSource("/x/7")})
    manager.aspire("m", {})
    wait_until(lambda: old.unloads == 1, _SECONDS, "unloaded", 0.005)
