"""Whatever a loop listens on is reached from its own machine only."""

import os
from pathlib import Path

import pytest

from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.processes import Processes
from millrace.cli.loop.scenario import generated
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topics import Topics
from tests.sockets import family, is_loopback, listening

pytestmark = [pytest.mark.service, pytest.mark.timeout(900)]  # a loop of seven processes starts

_ROWS_SECONDS = 120.0
_NAMES = ("server", "trainer", "feed", "agent")


@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_no_process_of_the_loop_listens_beyond_loopback(runner: str, own_servers: DevServers, tmp_path: Path) -> None:
    topics = Topics(f"sockets-{runner}.")
    kafka = KafkaConnection(own_servers.kafka_address)
    for topic in (topics.impressions, topics.actions, topics.train("feed")):
        ensure_topic(kafka, topic, partitions=4)
    processes = Processes(tmp_path)
    options = LoopOptions(runner=runner, recipe=None, report=tmp_path / "report", seconds=60.0)
    try:
        processes.start(generated(100.0, 0, 0), options, topics, kafka, own_servers.zookeeper_address)
        processes["producer"].start()
        # Some ports open with the first bundle only.
        wait_until(
            lambda: processes.metrics("trainer").get("millrace_rows_trained_total", 0) > 0,
            _ROWS_SECONDS,
            "rows trained",
        )
        pids = [server.pid for server in own_servers.servers] + [processes[name].pid for name in _NAMES]
        found = {
            (Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")[0], address, port)
            for pid in pids
            for each in family(int(pid or 0))
            if each != os.getpid()
            for address, port in listening(each)
        }
        assert len(found) >= len(pids), "each of them listens on something"
        assert [each for each in sorted(found) if not is_loopback(each[1])] == []
    finally:
        processes.stop()
