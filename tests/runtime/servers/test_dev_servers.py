"""The development servers for real: start, restart on the same port with the same data, crash, stop."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import (
    KafkaConnection,
    check_broker,
    ensure_topic,
    flush_or_raise,
    make_consumer,
    make_producer,
    watermarks,
)
from millrace.runtime.servers.daemon import port_is_free, start_time
from millrace.runtime.servers.dev_servers import DevServers, KafkaServer, running_address

_TOPIC = "things"


def _produce(address: str, value: bytes) -> None:
    producer = make_producer(KafkaConnection(address))
    producer.produce(_TOPIC, value)
    flush_or_raise(producer)


@pytest.mark.service
def test_kafka_keeps_port_and_data_through_a_restart_and_a_crash(own_servers: DevServers) -> None:
    address = own_servers.kafka_address
    ensure_topic(KafkaConnection(address), _TOPIC)
    _produce(address, b"first")
    own_servers.kafka.restart()
    _produce(address, b"second")
    own_servers.kafka.kill()
    assert own_servers.kafka.address is None
    own_servers.kafka.restart()
    assert own_servers.kafka_address == address
    assert watermarks(KafkaConnection(address), _TOPIC) == {0: (0, 2)}


@pytest.mark.service
def test_a_record_of_eight_megabytes_passes(own_servers: DevServers) -> None:
    connection = KafkaConnection(own_servers.kafka_address)
    ensure_topic(connection, _TOPIC)
    _produce(connection.bootstrap_servers, os.urandom(7_900_000))
    consumer = make_consumer(connection)
    consumer.subscribe([_TOPIC])
    message = consumer.poll(30.0)
    consumer.close()
    assert message is not None and message.error() is None
    assert len(message.value()) == 7_900_000


@pytest.mark.service
def test_up_finds_servers_that_run_and_replaces_those_that_died(tmp_path: Path) -> None:
    said: list[str] = []
    servers = DevServers(tmp_path, said.append)
    try:
        servers.up()
        pids = [server.pid for server in servers.servers]
        again = DevServers(tmp_path, said.append)
        again.up()
        assert [server.pid for server in again.servers] == pids
        assert sum("starting" in line for line in said) == 2
        os.kill(pids[1] or -1, signal.SIGKILL)
        wait_until(lambda: servers.zookeeper.pid is None, 10.0, "the crash noticed")
        assert [status.state for status in again.status()] == ["running", "stopped"]
        again.up()
        assert again.kafka.pid == pids[0]
        assert again.zookeeper.pid not in (None, pids[1])
    finally:
        servers.down()
    assert [status.state for status in servers.status()] == ["stopped", "stopped"]
    assert all(start_time(pid) is None for pid in pids if pid)


@pytest.mark.service
def test_a_former_port_that_another_process_took_is_given_up(tmp_path: Path) -> None:
    servers = DevServers(tmp_path, lambda _: None)
    server = servers.zookeeper
    try:
        server.start()
        former = server.address
        port = int(str(former).rpartition(":")[2])
        server.stop()
        wait_until(lambda: port_is_free(port), 10.0, "the kernel lets go of the port")
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            server.start()
            assert server.address not in (None, former)
    finally:
        servers.down()


@pytest.mark.service
def test_an_interrupted_format_is_begun_again(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path / "kafka", lambda _: None)
    server.data.mkdir(parents=True)
    (server.data / "bootstrap.checkpoint").write_bytes(b"half")
    try:
        server.start()
        check_broker(KafkaConnection(str(server.address)))
    finally:
        server.stop()


@pytest.mark.service
def test_the_command_starts_shows_restarts_and_stops_both(
    run_millrace: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    try:
        up = run_millrace("dev", "up")
        assert up.returncode == 0, up.stderr
        status = json.loads(run_millrace("dev", "status", "--json").stdout)
        assert [server["state"] for server in status] == ["running", "running"]
        assert all(start_time(server["pid"]) for server in status)
        assert "zookeeper |" in run_millrace("dev", "logs", "--lines", "2").stdout
        assert run_millrace("dev", "logs", "kafka", "--lines", "3").stdout.count("\n") == 3
        restarted = run_millrace("dev", "restart")
        assert restarted.returncode == 0, restarted.stderr
        before, status = status, json.loads(run_millrace("dev", "status", "--json").stdout)
        assert [server["address"] for server in status] == [server["address"] for server in before]
        assert not {server["pid"] for server in status} & {server["pid"] for server in before}
    finally:
        down = run_millrace("dev", "down")
    assert down.returncode == 0
    assert not any(start_time(server["pid"]) for server in status)
    assert json.loads(run_millrace("dev", "status", "--json").stdout)[0]["state"] == "stopped"


@pytest.mark.service
def test_followed_logs_end_cleanly_on_sigterm(tmp_path: Path, start_millrace: Callable[..., object]) -> None:
    log = tmp_path / "state" / "dev" / "kafka" / "server.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\n")
    child = start_millrace(
        "dev", "logs", "kafka", "--follow", name="logs", ready=False, env={"MILLRACE_STATE": str(tmp_path / "state")}
    )
    wait_until(lambda: "kafka     | one" in child.log_tail(), 20.0, "the first line")
    with open(log, "a") as file:
        file.write("two\nhal")
    wait_until(lambda: "kafka     | two" in child.log_tail(), 20.0, "the second line")
    assert child.stop() == 0
    assert "hal" not in child.log_tail()


def test_servers_named_by_the_environment_are_shown_and_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_KAFKA", "kafka.example:9092")
    monkeypatch.setenv("MILLRACE_ZOOKEEPER", "zookeeper.example:2181")
    said: list[str] = []
    servers = DevServers(tmp_path, said.append)
    servers.up()
    servers.restart()
    assert [status.state for status in servers.status()] == ["external", "external"]
    assert servers.kafka_address == "kafka.example:9092"
    assert servers.zookeeper_address == "zookeeper.example:2181"
    assert not any("starting" in line for line in said)


def test_without_servers_there_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_STATE", str(tmp_path))
    monkeypatch.delenv("MILLRACE_KAFKA", raising=False)
    assert running_address("kafka") is None
    with pytest.raises(UserError, match="millrace dev up"):
        _ = DevServers(tmp_path, lambda _: None).kafka_address


def test_a_missing_java_names_the_debian_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MILLRACE_KAFKA", raising=False)
    with pytest.raises(UserError, match="program=java.*openjdk-17-jdk-headless"):
        DevServers(tmp_path, lambda _: None).up()


def test_an_address_is_found_without_heavy_imports() -> None:
    """`--kafka` defaults to the running server in every command: that must not cost a second."""
    heavy = "{'confluent_kafka', 'kazoo', 'numpy'}"
    code = f"import sys, millrace.runtime.servers.dev_servers; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
