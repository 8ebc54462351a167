"""Runs an agent: opens its clients of Kafka, ZooKeeper and the model server, and closes them at the end."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from millrace.runtime.kafka_client import KafkaConnection, check_broker, ensure_topic, make_producer
from millrace.runtime.telemetry import Heartbeat
from millrace.runtime.topic_reader import TopicReader
from millrace.runtime.topic_setup import ensure_model_events
from millrace.runtime.topics import Topics
from millrace.runtime.zookeeper import ZooKeeperSession
from millrace.serving.agent.agent import Agent, AgentConfig
from millrace.serving.agent.late import EventReader, Late, LateEvents
from millrace.serving.agent.registry import Registry
from millrace.serving.agent.server_control import ServerControl
from millrace.serving.agent.state_file import StateFile

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


def open_events(connection: KafkaConnection, topics: Topics) -> TopicReader:
    """The events of all models from the beginning; makes the topics of an agent where they are missing.

    Raises:
      UnreachableError: no broker answers.
      UserError: the brokers refuse the credentials, or `model.events` is not fit for its events.
    """
    check_broker(connection)
    ensure_model_events(connection, topics.model_events)
    ensure_topic(connection, topics.serving_status)
    return TopicReader(connection, topics.model_events, {0: 0})


def run_agent(
    config: AgentConfig,
    control: str,
    connection: KafkaConnection,
    topics: Topics,
    zookeeper: str,
    agent_address: str,
    state_file: Path,
    stop: threading.Event,
    heartbeat: Heartbeat,
    on_ready: Callable[[], None] = lambda: None,
    zookeeper_properties: str | None = None,
) -> None:
    """Runs an agent until `stop` is set. Waits for Kafka and ZooKeeper without limit, and works meanwhile.

    Args:
      control: `host:port` of the server's control port.
      zookeeper_properties: file of TLS settings and credentials (`millrace.runtime.zookeeper`).

    Raises:
      UserError: a server refuses the credentials, or `model.events` is not fit for its events.
    """
    owner = f"{config.namespace}/{config.model}/{config.replica_id}"
    memory = StateFile(state_file, f"{topics.model_events}:{owner}")
    statuses = StatusProducer(connection, topics.serving_status, owner)
    server = ServerControl(control)
    session = Late(
        lambda: ZooKeeperSession(zookeeper, properties_file=zookeeper_properties), f"ZooKeeper at {zookeeper}"
    )
    events: Late[EventReader] = Late(
        lambda: open_events(connection, topics), f"Kafka at {connection.bootstrap_servers}"
    )
    registry = Registry(session.get, config.namespace, config.model, config.replica_id, config.server, agent_address)
    try:
        on_ready()
        Agent(config, LateEvents(events), server, registry, statuses.send, memory).run(stop, heartbeat)
    finally:
        events.close()
        server.close()
        session.close()
        statuses.close()
