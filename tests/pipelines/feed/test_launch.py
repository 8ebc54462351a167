"""What a launch does before a pipeline runs."""

import threading
from pathlib import Path

import pytest

from millrace.pipelines.feed.launch import run_feed
from millrace.pipelines.feed.options import FeedOptions, FileSettings
from millrace.pipelines.kafka.process import FIRST_POLL
from millrace.runtime.errors import UserError
from tests.pipelines.feed.test_event_feed import config


def test_a_feed_drops_what_an_earlier_one_left_in_the_process(tmp_path: Path) -> None:
    files = FileSettings("no-impressions*", "no-actions*")
    options = FeedOptions(config(), files, tmp_path / "rows", "direct", ("--no_such_flag=1",), tmp_path / "work")
    FIRST_POLL.set()
    with pytest.raises(UserError, match="--no_such_flag=: neither millrace nor Beam knows this flag"):
        run_feed(options, threading.Event())
    assert not FIRST_POLL.is_set()
