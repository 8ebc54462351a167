"""A server that has lost a delta is exported for once, and not on and on when an export does not help it."""

import json
from typing import Any

import pytest

from millrace.training.online.resync import ResyncRequests


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def status(**fields: Any) -> bytes:
    common = {"model_name": "m", "bzid": "default", "target_version": 7, "resync_required": True, "is_held": False}
    return json.dumps(common | fields).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def requests(clock: Clock) -> ResyncRequests:
    return ResyncRequests("m", "default", clock)


def test_many_servers_that_ask_make_one_export(requests: ResyncRequests) -> None:
    assert not requests.take(7)
    for _ in range(3):
        requests.add(status())
    assert requests.take(7)
    assert not requests.take(7)


def test_a_version_that_was_announced_since_answers_the_request(requests: ResyncRequests, clock: Clock) -> None:
    requests.add(status())
    assert requests.take(7)
    for _ in range(100):  # a server that refuses the new version says the same every 10 s
        clock.now += 10
        requests.add(status())
        assert not requests.take(8)


def test_a_server_that_asks_again_with_each_new_version_gets_one_export_in_30_s(
    requests: ResyncRequests, clock: Clock
) -> None:
    taken = 0
    for _ in range(600):
        clock.now += 0.5
        requests.add(status(target_version=7 + taken))
        taken += requests.take(7 + taken)
    assert taken == 10


@pytest.mark.parametrize(
    "value",
    [
        status(resync_required=False),
        status(is_held=True),
        status(target_version=0),
        status(model_name="n"),
        status(bzid="other"),
        status(target_version=None),
        b"",
        b"[1]",
        b"[" * 100_000,
        status(target_version=1e400),
        b"\xff",
        b'{"model_name": "m"}',
    ],
)
def test_what_asks_for_nothing_is_passed_over(requests: ResyncRequests, value: bytes) -> None:
    requests.add(value)
    assert not requests.take(0)
