"""Flags and addresses that the commands share."""

import argparse
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.cli import common
from millrace.runtime.errors import UserError


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Nothing given, no environment, no development servers."""
    monkeypatch.setenv("MILLRACE_STATE", str(tmp_path))
    monkeypatch.delenv("MILLRACE_KAFKA", raising=False)
    monkeypatch.delenv("MILLRACE_ZOOKEEPER", raising=False)
    return _parse()


def _parse(*args: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    common.add_kafka_flags(parser)
    common.add_zookeeper_flag(parser)
    common.add_process_flags(parser)
    return parser.parse_args(args)


def test_metrics_answer_on_loopback_unless_told_otherwise() -> None:
    for flags, host in (((), "127.0.0.1"), (("--metrics-host", "0.0.0.0"), "0.0.0.0")):
        endpoint = common.metrics_endpoint(_parse(*flags))
        assert endpoint.address.startswith(f"{host}:")
        endpoint.close()


def test_a_flag_goes_before_the_environment(arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_KAFKA", "environment:1")
    assert common.kafka_connection(arguments, check=False).bootstrap_servers == "environment:1"
    given = _parse("--kafka", "flag:1,flag:2")
    assert common.kafka_connection(given, check=False).bootstrap_servers == "flag:1,flag:2"


@pytest.mark.parametrize("name", ["kafka", "zookeeper"])
def test_without_an_address_the_error_says_how_to_get_one(name: str, arguments: argparse.Namespace) -> None:
    get = common.zookeeper_address if name == "zookeeper" else common.kafka_connection
    with pytest.raises(UserError, match=f"--{name}.*millrace dev up.*MILLRACE_{name.upper()}"):
        get(arguments)


def test_a_malformed_address_in_the_environment_names_the_variable(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_ZOOKEEPER", "localhost")
    with pytest.raises(UserError, match="MILLRACE_ZOOKEEPER=localhost"):
        common.zookeeper_address(arguments)


@pytest.mark.parametrize("flag", ["--kafka", "--zookeeper"])
@pytest.mark.parametrize("text", ["localhost", "localhost:", ":9092", "a:1,b", "a:99999", "a b:1", ""])
def test_a_malformed_address_is_refused(flag: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse(flag, text)
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "65536", "http", "1.5"])
def test_a_wrong_port_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse(f"--metrics-port={text}")
    assert f"'{text}' is not a port" in capsys.readouterr().err


def test_a_prefix_that_kafka_would_refuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse("--topic-prefix", "eu/")
    assert common.topics(_parse("--topic-prefix", "eu.")).impressions == "eu.events.impressions"


def test_an_unreachable_broker_is_a_user_error_that_names_it() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--kafka={address}.*millrace dev up"):
            common.kafka_connection(_parse("--kafka", address))


@pytest.mark.parametrize(("content", "problem"), [(None, "cannot be read"), ("password secret\n", "not key=value")])
def test_a_wrong_properties_file_is_named_and_never_quoted(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "client.properties"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=problem) as error:
        common.kafka_connection(_parse("--kafka", "a:1", "--kafka-properties", str(path)))
    assert str(path) in str(error.value) and "secret" not in str(error.value)


def test_a_properties_file_sets_client_options(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("# TLS\nsecurity.protocol=SSL\nssl.ca.location = /etc/ca=1.pem\nsasl.password=50%=x\n")
    config = common.kafka_connection(
        _parse("--kafka", "a:1", "--kafka-properties", str(path)), check=False
    ).client_config()
    assert config == {
        "bootstrap.servers": "a:1",
        "security.protocol": "SSL",
        "ssl.ca.location": "/etc/ca=1.pem",
        "sasl.password": "50%=x",
    }


def test_readiness_is_written_for_whoever_waits(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ready.json"
    common.announce_ready(_parse("--ready-file", str(path)), metrics="127.0.0.1:1", port=7)
    assert json.loads(path.read_text()) == {"pid": os.getpid(), "metrics": "127.0.0.1:1", "port": 7}
    common.announce_ready(_parse(), port=7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_stop_event(number: signal.Signals) -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = common.stop_on_signals()
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5.0)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@pytest.mark.parametrize("parse", [common.at_least_one, common.at_least_zero, common.moment])
def test_a_number_that_no_message_holds_is_refused(parse: Callable[[str], int]) -> None:
    assert parse("9" * 18) == 10**18 - 1
    for text in ("1" + "0" * 18, "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match=f"has {len(text)} digits; give at most 18"):
            parse(text)
