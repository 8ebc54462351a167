"""The seeded scenarios: a feed is killed, restarted and resubmitted at random moments while events flow."""

from collections.abc import Callable
from pathlib import Path

from millrace.runtime.servers.dev_servers import KafkaServer
from tests.chaos.audit import Audit
from tests.chaos.feed_world import FeedWorld
from tests.chaos.scenario import FaultKind, Scenario


def run_seeded(scenario: Scenario, server: KafkaServer, folder: Path) -> Audit:
    """Runs it on a broker that runs, with its files in `folder`."""
    with FeedWorld(scenario.runner, server, folder) as world:
        world.send(scenario.rate, scenario.seed)
        faults: dict[FaultKind, Callable[[], None]] = {
            "kill feed": world.feed.kill_feed,
            "kill worker": world.feed.kill_worker,
            "kill broker": lambda: _kill_broker(server),
            "restart broker": server.restart,
            "resubmit": world.feed.resubmit,
        }
        for fault in scenario.faults:
            world.read_more()
            world.read_for(fault.after_seconds)
            faults[fault.kind]()
        world.read_for(scenario.seconds)
        return world.audit()


def _kill_broker(server: KafkaServer) -> None:
    server.kill()
    server.restart()  # on the same port, which start() does not promise
