"""The first event of a new user: the topics are made by the feed, and the page's own lines send it."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.servers.dev_servers import DevServers
from tests.integration.test_feed_prism import START_SECONDS, TrainTopic

pytestmark = pytest.mark.service

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "events.md"


def test_the_lines_of_the_page_send_an_event_that_becomes_rows(
    own_servers: DevServers, start_millrace: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    feed = start_millrace(
        "feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--create-topics", "--window-seconds", "1",
        "--kafka", own_servers.kafka_address, "--work-dir", str(tmp_path),
    )  # fmt: skip
    feed.wait_ready(START_SECONDS)
    (lines,) = re.findall(r"```python\n(.*?)```", _PAGE.read_text("utf-8"), re.S)
    code = lines.replace("127.0.0.1:9092", own_servers.kafka_address)
    assert code != lines
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    rows = TrainTopic(KafkaConnection(own_servers.kafka_address), "train.feed")
    wait_until(lambda: rows.read() >= 3, START_SECONDS, "the rows of the event")
    assert sorted(label for labels in rows.labels.values() for label in labels) == [0.0, 0.0, 1.0]
    rows.close()
    assert feed.stop() == 0
