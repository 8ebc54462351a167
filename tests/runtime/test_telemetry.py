"""The metrics endpoint and the log format."""

import logging
import socket
import struct
import threading
import urllib.error
import urllib.request

import pytest

from millrace.runtime import telemetry
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError


def _get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_are_served_in_prometheus_format() -> None:
    counter = telemetry.counter("test_telemetry_things", "Things.", ("kind",))
    counter.labels("odd").inc(3)
    endpoint = telemetry.MetricsEndpoint()
    try:
        status, text = _get(endpoint.address, "/metrics")
    finally:
        endpoint.close()
    assert status == 200
    assert 'millrace_test_telemetry_things_total{kind="odd"} 3.0' in text


def test_health_is_the_reason_or_ok() -> None:
    reason: str | None = None
    endpoint = telemetry.MetricsEndpoint(health=lambda: reason)
    try:
        assert _get(endpoint.address, "/healthz") == (200, "ok")
        reason = "no broker"
        assert _get(endpoint.address, "/healthz") == (503, "no broker")
        assert _get(endpoint.address, "/other")[0] == 404
    finally:
        endpoint.close()


def test_a_scraper_that_left_before_the_answer_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    asked, gone = threading.Event(), threading.Event()

    def health() -> None:
        asked.set()
        assert gone.wait(10.0)

    endpoint = telemetry.MetricsEndpoint(health=health)
    host, port = endpoint.address.rsplit(":", 1)
    try:
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert asked.wait(10.0)
        connection.close()
        gone.set()
        before = threading.enumerate()
        wait_until(lambda: not any("process_request" in t.name for t in before if t.is_alive()), 10.0, "the answer")
        assert _get(endpoint.address, "/metrics")[0] == 200
    finally:
        endpoint.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_loop_is_sick_once_it_has_stood_still_too_long() -> None:
    now = 0.0
    heartbeat = telemetry.Heartbeat("the loop", seconds=30.0, clock=lambda: now)
    now = 100.0
    assert heartbeat.reason() is None  # it has not begun
    heartbeat.beat()
    now = 130.0
    assert heartbeat.reason() is None
    now = 131.0
    assert heartbeat.reason() == "the loop has stood still for 31 s"
    heartbeat.beat()
    assert heartbeat.reason() is None


def test_an_input_is_sick_while_all_that_comes_is_refused() -> None:
    streak = telemetry.RefusalStreak("blocks", limit=3)
    for _ in range(2):
        streak.refused("not_arrow")
    assert streak.reason() is None
    streak.refused("wrong_columns")
    assert streak.reason() == "the last 3 blocks were all refused, the newest for: wrong_columns"
    streak.taken()
    assert streak.reason() is None


def test_of_a_flood_of_messages_one_per_kind_and_period_is_logged_with_their_number() -> None:
    now = [0.0]
    limit = telemetry.LogLimit(seconds=10.0, clock=lambda: now[0])
    assert [limit.count("a"), limit.count("b"), limit.count("a"), limit.count("a", 5)] == [1, 1, 0, 0]
    now[0] = 10.0
    assert [limit.count("a"), limit.count("a"), limit.count("b")] == [7, 0, 1]


def test_a_port_in_use_is_a_user_error_that_names_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--metrics-port={port}: .*in use.*another port"):
            telemetry.MetricsEndpoint(port)


def test_a_record_with_a_traceback_is_one_line_with_the_role(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        telemetry.setup_logging("trainer")
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            logging.getLogger("thing").exception("it failed")
    finally:
        root.handlers[:], root.level = before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert " E trainer thing: it failed | " in lines[0] and "ValueError: first | second" in lines[0]


def test_a_namespace_names_layer_and_component() -> None:
    assert telemetry.namespace("transforms", "join") == "millrace.transforms.join"


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")])
def test_the_endpoint_listens_on_the_interface_that_it_is_told(host: str, address: str) -> None:
    endpoint = telemetry.MetricsEndpoint(host=host)
    try:
        assert endpoint.address.startswith(address)
        assert _get(endpoint.address, "/healthz") == (200, "ok")
    finally:
        endpoint.close()


def test_an_interface_of_another_machine_is_a_user_error_that_names_the_flag() -> None:
    with pytest.raises(UserError, match="--metrics-host=192.0.2.1: cannot listen on it"):
        telemetry.MetricsEndpoint(host="192.0.2.1")


def test_a_request_that_does_not_come_keeps_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_REQUEST_SECONDS", 0.2)
    endpoint = telemetry.MetricsEndpoint()
    host, _, port = endpoint.address.partition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=30.0) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            assert connection.recv(1) == b""
    finally:
        endpoint.close()
