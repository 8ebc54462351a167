"""Commands that run for ever wait for servers that are away at their start, say so, and can be stopped meanwhile."""

import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.servers.daemon import free_port
from millrace.runtime.servers.dev_servers import DevServers

_SECONDS = 120.0  # a command imports TensorFlow or Beam, on a busy machine
_TASK = ("--task", "millrace.examples.feed_ranking:FeedRanking")


def health(port: int) -> tuple[int, str]:
    """(status, text) of /healthz; (0, "") while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except OSError:
        return 0, ""


def waits_for(port: int, what: str) -> Callable[[], bool]:
    def waits() -> bool:
        status, text = health(port)
        return status == 200 and text.startswith("waiting for ") and what in text  # it may wait for two at a time

    return waits


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("feed", *_TASK),
        ("feed", *_TASK, "--create-topics"),
        ("train", *_TASK, "--online", "--model-dir", "model"),
        ("agent", "--model", "m", "--server", "127.0.0.1:1"),
        ("events", "generate"),
    ],
    ids=lambda command: " ".join(command),
)
def test_a_command_waits_for_what_is_away_and_stops_cleanly(
    command: tuple[str, ...],
    start_millrace: Callable[..., ChildProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    port, away = free_port(), f"127.0.0.1:{free_port()}"
    name, *flags = command
    servers = ("--kafka", away, *(("--zookeeper", away) if name == "agent" else ()))
    process = start_millrace(name, *flags, *servers, "--metrics-port", str(port))
    what = f"{'ZooKeeper' if name == 'agent' else 'Kafka'} at {away}"
    wait_until(waits_for(port, what), _SECONDS, f"{name} waits")
    assert f"waiting for {what} for 0 s: " in process.log_tail()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(_SECONDS) == 0, process.log_tail()
    # An agent works while it waits: it tells the server what it remembers.
    assert process.ready_path.exists() == (name == "agent")


@pytest.mark.service
def test_a_command_that_waited_finds_what_is_wrong(
    own_servers: DevServers, start_millrace: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    port, kafka = free_port(), own_servers.kafka_address
    own_servers.kafka.kill()
    feed = start_millrace("feed", *_TASK, "--kafka", kafka, "--metrics-port", str(port))
    wait_until(waits_for(port, f"Kafka at {kafka}"), _SECONDS, "the feed waits")
    own_servers.kafka.restart()
    assert feed.wait(_SECONDS) == 2
    assert "events.impressions: the topic does not exist" in feed.log_tail()
