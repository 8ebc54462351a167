"""Runs an agent: opens its clients of Kafka, ZooKeeper and the model server, and closes them at the end."""

import logging
import threading
from collections.abc import Callable

from millrace.runtime.kafka_client import KafkaConnection, check_broker, ensure_topic, make_producer
from millrace.runtime.outage import while_away
from millrace.runtime.telemetry import Heartbeat
from millrace.runtime.topic_reader import TopicReader
from millrace.runtime.topic_setup import ensure_model_events
from millrace.runtime.topics import Topics
from millrace.runtime.zookeeper import ZooKeeperSession
from millrace.serving.agent.agent import Agent, AgentConfig
from millrace.serving.agent.registry import Registry
from millrace.serving.agent.server_control import ServerControl

_LOG = logging.getLogger(__name__)
_FLUSH_SECONDS = 5.0
_STATUS_BUFFER = 1000


class StatusProducer:
    """Sends statuses without ever blocking; with too many waiting for a dead broker, new ones are dropped."""

    def __init__(self, connection: KafkaConnection, topic: str, key: str) -> None:
        self._producer = make_producer(
            connection, queue_buffering_max_messages=_STATUS_BUFFER, reconnect_backoff_ms=250
        )
        self._topic = topic
        self._key = key

    def send(self, value: bytes) -> None:
        try:
            self._producer.produce(self._topic, value, key=self._key)
        except BufferError:
            _LOG.warning("status not sent: %d wait for a broker", len(self._producer))
        self._producer.poll(0)

    def close(self) -> None:
        self._producer.flush(_FLUSH_SECONDS)


def run_agent(
    config: AgentConfig,
    connection: KafkaConnection,
    topics: Topics,
    zookeeper: str,
    agent_address: str,
    stop: threading.Event,
    heartbeat: Heartbeat,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Runs an agent until `stop` is set; waits for ZooKeeper and Kafka that are away.

    Raises:
      UserError: a server refuses the credentials, or `model.events` is not fit for its events.
      StoppedError: `stop` was set while it waited.
    """
    session = while_away(lambda: ZooKeeperSession(zookeeper), f"ZooKeeper at {zookeeper}", stop)
    kafka = f"Kafka at {connection.bootstrap_servers}"
    while_away(lambda: check_broker(connection), kafka, stop)
    while_away(lambda: ensure_model_events(connection, topics.model_events), kafka, stop)
    while_away(lambda: ensure_topic(connection, topics.serving_status, partitions=1), kafka, stop)
    statuses = StatusProducer(connection, topics.serving_status, f"{config.bzid}/{config.model}/{config.replica_id}")
    events = TopicReader(connection, topics.model_events, {0: 0})
    server = ServerControl(config.server, config.model)
    registry = Registry(session, config.bzid, config.model, config.replica_id)
    try:
        registry.register(config.server, agent_address)
        on_ready()
        Agent(config, events, server, registry, statuses.send).run(stop, heartbeat)
    finally:
        events.close()
        server.close()
        session.close()
        statuses.close()
