"""Scenarios of a feed alone, on each runner; each function strikes a world and returns the count of its rows."""

import os
import signal
from pathlib import Path

from millrace.runtime.deadline import Deadline
from millrace.runtime.servers.dev_servers import KafkaServer
from tests.chaos.audit import Audit
from tests.chaos.clock import SteppedClock
from tests.chaos.feed_world import FeedWorld
from tests.chaos.scenario import Runner

_RATE = 400
_OUTAGE_SECONDS = 90.0  # longer than the minute for which requests are retried where a time-out is left as it was
_STEP_SECONDS = 3600
# Rows wait long beside what a busy machine delays an action, or those delays would look like early negatives.
_CLOCK_WINDOW_SECONDS = 15.0


def broker_away(runner: Runner, server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """The broker is killed while events flow and comes back after 90 s, with the same port and data."""
    with FeedWorld(runner, server, folder) as world:
        world.send(_RATE)
        world.read_more()
        server.kill()
        outage = Deadline(_OUTAGE_SECONDS)
        while not outage.expired():
            world.read_for(1.0)
        server.restart()
        world.read_more()
        world.read_for(5.0)
        return world.audit()


def topics_made_anew(runner: Runner, server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """The topics of events, and then the train topic, are deleted and made again while the feed runs."""
    with FeedWorld(runner, server, folder) as world:
        for seed, names in enumerate([(), (world.topics.impressions, world.topics.actions), (world.train_topic,)]):
            for name in names:
                world.make_anew(name)
            if world.train_topic in names:
                world.train.topic_is_new()
            # Bad records once: a dead letter names the place of its record, which one of a new topic has again.
            world.send(_RATE, seed, bad_records=0 if names else 5)
            world.read_more()
            world.read_for(4.0)
            world.stop_sending()
            world.drain()  # what a deleted topic held unread is lost with it
        return world.audit()


def clock_steps(runner: Runner, server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """The clock of the processes that join steps an hour ahead and back; no window may close early."""
    clock = SteppedClock(folder)
    with FeedWorld(runner, server, folder, _CLOCK_WINDOW_SECONDS, env=clock.environment) as world:
        world.send(_RATE, bad_records=0)
        world.read_more()
        for seconds in (_STEP_SECONDS, 0):
            world.read_for(5.0)
            clock.step(seconds)
            world.read_more()
        world.read_for(5.0)
        return world.audit(labels=True)


def feed_stands_still(runner: Runner, server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """The feed and its workers get SIGSTOP, and SIGCONT later."""
    with FeedWorld(runner, server, folder) as world:
        world.send(_RATE)
        world.read_more()
        pids = world.feed.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            world.read_for(stop_seconds)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        world.read_more()
        world.read_for(3.0)
        return world.audit()


FEED_SCENARIOS = {
    "broker-away": broker_away,
    "topics-anew": topics_made_anew,
    "clock-steps": clock_steps,
    "feed-stands-still": feed_stands_still,
}
