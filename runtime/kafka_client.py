"""Kafka connections and clients; only this folder imports confluent-kafka to make one."""

import configparser
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from millrace.runtime.deadline import Deadline, wait_until
from millrace.runtime.errors import UnreachableError, UserError

MAX_MESSAGE_BYTES = 8_000_000
"""The largest message that a producer sends, before compression: eight times what brokers take by default.

How much a topic takes, `max_record_bytes` tells.
"""

_REQUEST_SECONDS = 10.0  # a broker that is up answers within this time, even while it chooses leaders
_RETRY_SECONDS = 0.1  # choosing a leader takes a few of these
_CHECK_SECONDS = 5.0  # how long a user waits until told that no broker answers


class _NowAndThen(logging.Filter):
    """Passes one log record of each kind per `seconds`; a client without a broker logs twenty of them per second."""

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._quiet_until: dict[tuple[int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.levelno, record.getMessage().partition(" ")[0])
        now = time.monotonic()
        if now < self._quiet_until.get(kind, 0.0):
            return False
        self._quiet_until[kind] = now + self._seconds
        return True


_Client = TypeVar("_Client", Producer, Consumer, AdminClient)
_SECRET = re.compile("password|secret|token|oauthbearer|\\.pem$|jaas")

# What librdkafka logs goes through the process's own log, which names the process, and not directly to stderr.
_client_log = logging.getLogger("kafka")
_client_log.addFilter(_NowAndThen())


class UndeliveredError(RuntimeError):
    """A producer could not deliver every message."""


def read_properties(path: str, field_name: str) -> dict[str, str]:
    """{key: value} of the `key=value` lines of a file that may hold secrets; UserError, without them, otherwise."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string("[client]\n" + Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(field_name, path, f"cannot be read ({problem})", "name a readable file") from error
    except configparser.Error as error:
        # No text of the parser here: it quotes the line, which may hold a password.
        raise UserError(field_name, path, "has a line that is not key=value", "correct it") from error
    return dict(parser["client"])


@dataclass(frozen=True)
class KafkaConnection:
    """Where the brokers are and how to talk to them.

    Args:
      bootstrap_servers: `host:port[,host:port]`.
      properties_file: `key=value` lines of librdkafka settings (TLS, SASL); never logged.
    """

    bootstrap_servers: str
    properties_file: str | None = field(default=None, repr=False)

    def client_config(self) -> dict[str, str | int | float | bool]:
        config: dict[str, str | int | float | bool] = {"bootstrap.servers": self.bootstrap_servers}
        if self.properties_file:
            config.update(read_properties(self.properties_file, "--kafka-properties"))
        return config


def _client(kind: Callable[..., _Client], connection: KafkaConnection, config: Mapping[str, object]) -> _Client:
    """Makes a client; UserError, without the values of secrets, when it refuses a setting."""
    try:
        return kind(dict(config), logger=_client_log)
    except KafkaException as error:
        raise UserError(
            "--kafka-properties",
            connection.properties_file,
            _without_secrets(error.args[0].str(), config),
            "correct it; librdkafka's CONFIGURATION.md lists every setting",
        ) from None  # the cause holds the secrets that are hidden here


def _without_secrets(text: str, config: Mapping[str, object]) -> str:
    for name, value in config.items():
        if _SECRET.search(name) and value:
            text = text.replace(str(value), "***")
    return text


def make_producer(connection: KafkaConnection, **overrides: str | int | float) -> Producer:
    """An idempotent producer (`acks=all`, lz4); `overrides` are settings with `_` for `.`, such as `linger_ms=5`."""
    config = connection.client_config() | {
        "enable.idempotence": True,
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.max.bytes": MAX_MESSAGE_BYTES,
    }
    config.update({key.replace("_", "."): value for key, value in overrides.items()})
    return _client(Producer, connection, config)


def make_consumer(connection: KafkaConnection, group_id: str = "millrace", **overrides: str | int | float) -> Consumer:
    """A consumer for manual assignment: commits nothing by itself, and goes on at the earliest offset after a lost one.

    `overrides` are settings with `_` for `.`.
    """
    config = connection.client_config() | {
        "group.id": group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": False,
        "fetch.wait.max.ms": 50,
        "isolation.level": "read_committed",
    }
    config.update({key.replace("_", "."): value for key, value in overrides.items()})
    return _client(Consumer, connection, config)


def flush_or_raise(producer: Producer, seconds: float = 30.0) -> None:
    """Waits until every message is acknowledged; raises UndeliveredError if that takes longer than `seconds`."""
    left = producer.flush(seconds)
    if left:
        raise UndeliveredError(f"{left} messages were not acknowledged within {seconds:g} s")


def make_admin(connection: KafkaConnection) -> AdminClient:
    return _client(AdminClient, connection, connection.client_config())


def check_broker(connection: KafkaConnection, field_name: str = "--kafka", seconds: float = _CHECK_SECONDS) -> None:
    """Raises unless a broker answers a metadata request.

    Raises:
      UnreachableError: none answers; a process that runs for ever waits (`millrace.runtime.outage`).
      UserError: the brokers refuse the credentials, or a client setting is wrong.
    """
    refusals: list[KafkaError] = []
    troubles: list[str] = []

    def on_error(error: KafkaError) -> None:
        if error.code() in _REFUSALS:
            refusals.append(error)
        elif error.code() != KafkaError._ALL_BROKERS_DOWN:  # that says less than what went before it
            troubles.append(_without_secrets(error.str(), connection.client_config()))

    # log_level 0: the client would log at every attempt what the error below says once.
    admin = _client(AdminClient, connection, connection.client_config() | {"log_level": 0, "error_cb": on_error})
    try:
        admin.list_topics(timeout=seconds)
    except KafkaException as error:
        admin.poll(0)  # calls on_error with what the client noticed in the background
        if refusals:
            raise _refused(connection, refusals[-1], field_name) from error
        reason = troubles[-1] if troubles else error.args[0].str()
        raise UnreachableError(
            field_name,
            connection.bootstrap_servers,
            f"no Kafka broker answers ({reason})",
            "start one with `millrace dev up` or name another address",
        ) from error


_REFUSALS = {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED}


def _refused(connection: KafkaConnection, error: KafkaError, field_name: str) -> UserError:
    reason = _without_secrets(error.str(), connection.client_config())
    if connection.properties_file is None:
        return UserError(field_name, connection.bootstrap_servers, reason, "name TLS and SASL in --kafka-properties")
    return UserError(
        "--kafka-properties", connection.properties_file, reason, "correct the user, the password or the certificates"
    )


def partitions_of(connection: KafkaConnection, topic: str, field_name: str = "topic") -> list[int]:
    """Partition numbers of `topic`, ascending; UserError when it does not exist."""
    metadata = make_admin(connection).list_topics(topic, timeout=_REQUEST_SECONDS).topics[topic]
    if metadata.error is not None and metadata.error.code() in _FORBIDDEN:
        raise UserError(field_name, topic, "the user may not look at it", "grant DESCRIBE on the topic")
    if metadata.error is not None and metadata.error.code() not in _UNKNOWN:
        raise KafkaException(metadata.error)
    if not metadata.partitions:
        raise UserError(
            field_name,
            topic,
            "the topic does not exist",
            "create it, or give --create-topics to the command that lacks it",
        )
    return sorted(metadata.partitions)


def ensure_topic(
    connection: KafkaConnection, topic: str, partitions: int = 1, config: dict[str, str] | None = None
) -> None:
    """Creates `topic` unless it exists, and waits until its partitions have leaders.

    An existing topic is left as it is, and needs no right to create.

    Raises:
      UserError: a right is missing, or the brokers refuse the topic.
      UnreachableError: its partitions have no leaders.
    """
    admin = make_admin(connection)  # a variable: a future is cancelled when its client is collected as garbage
    if not _topic_exists(admin, topic):
        _create_topic(admin, NewTopic(topic, num_partitions=partitions, replication_factor=-1, config=config or {}))
    # Another broker, which may answer the next request, may not know a new topic yet.
    try:
        wait_until(lambda: _has_leaders(admin, topic), _REQUEST_SECONDS, f"topic {topic} is ready")
    except TimeoutError as error:
        raise UnreachableError(
            "topic", topic, f"its partitions have no leaders after {_REQUEST_SECONDS:g} s", "look at the brokers"
        ) from error


def _topic_exists(admin: AdminClient, topic: str) -> bool:
    # Not list_topics: where brokers create topics by themselves, its question alone would make one.
    future = admin.describe_topics(TopicCollection([topic]), request_timeout=_REQUEST_SECONDS)[topic]
    try:
        future.result()
    except KafkaException as error:
        if error.args[0].code() in _UNKNOWN:
            return False
        if error.args[0].code() in _FORBIDDEN:
            raise UserError("topic", topic, "the user may not look at it", "grant DESCRIBE on the topic") from error
        raise
    return True


def _create_topic(admin: AdminClient, topic: NewTopic) -> None:
    future = admin.create_topics([topic], request_timeout=_REQUEST_SECONDS)[topic.topic]
    try:
        future.result()
    except KafkaException as error:
        code = error.args[0].code()
        if code == KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster
            return
        if code in _FORBIDDEN:
            raise UserError(
                "topic", topic.topic, "it does not exist, and the user may not create it",
                "create it, or grant CREATE on the topic or on the cluster",
            ) from error  # fmt: skip
        if is_passing(error.args[0]):
            raise
        raise UserError(
            "topic", topic.topic, f"the brokers refuse to create it ({error.args[0].str()})", "create it yourself"
        ) from error


_UNKNOWN = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}
_FORBIDDEN = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}


def _has_leaders(admin: AdminClient, topic: str) -> bool:
    metadata = admin.list_topics(topic, timeout=_REQUEST_SECONDS).topics[topic]
    return bool(metadata.partitions) and all(each.leader >= 0 for each in metadata.partitions.values())


def topic_settings(connection: KafkaConnection, topic: str, seconds: float = _REQUEST_SECONDS) -> dict[str, str] | None:
    """{name: value} of the settings of `topic`; None where the user may not ask for them."""
    admin = make_admin(connection)
    future = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)], request_timeout=seconds)
    try:
        settings = next(iter(future.values())).result()
    except KafkaException as error:
        if error.args[0].code() in _FORBIDDEN:
            return None
        raise
    return {name: str(entry.value) for name, entry in settings.items()}


def max_record_bytes(connection: KafkaConnection, topic: str, seconds: float = _REQUEST_SECONDS) -> int:
    """`max.message.bytes` of `topic`; `MAX_MESSAGE_BYTES` where the user may not ask."""
    settings = topic_settings(connection, topic, seconds)
    return MAX_MESSAGE_BYTES if settings is None else int(settings["max.message.bytes"])


def watermarks(connection: KafkaConnection, topic: str) -> dict[int, tuple[int, int]]:
    """{partition: (first offset, next offset)} of `topic` now."""
    consumer = make_consumer(connection, group_id="millrace-watermarks")
    try:
        return {
            partition: watermark_offsets(consumer, topic, partition) for partition in partitions_of(connection, topic)
        }
    finally:
        consumer.close()


def watermark_offsets(
    consumer: Consumer, topic: str, partition: int, seconds: float = _REQUEST_SECONDS
) -> tuple[int, int]:
    """(first offset, next offset) now; asks again for `seconds` while the partition has no leader."""
    deadline = Deadline(seconds)
    while True:
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=seconds)
            return int(low), int(high)
        except KafkaException as error:
            if error.args[0].code() not in _NO_LEADER_YET or deadline.expired():
                raise
            time.sleep(_RETRY_SECONDS)


_NO_LEADER_YET = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}


def is_passing(error: KafkaError) -> bool:
    """Whether a reader may read on after this error: the end of a partition, or a broker that restarts or is away.

    librdkafka reconnects and retries by itself, and reports what it waits for as an error.
    """
    return error.retriable() or error.code() in _PASSING


_PASSING = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._PARTITION_EOF}


__all__ = [
    "MAX_MESSAGE_BYTES",
    "ConfigResource",
    "KafkaConnection",
    "ResourceType",
    "UndeliveredError",
    "check_broker",
    "ensure_topic",
    "flush_or_raise",
    "is_passing",
    "make_admin",
    "make_consumer",
    "make_producer",
    "max_record_bytes",
    "partitions_of",
    "read_properties",
    "topic_settings",
    "watermark_offsets",
    "watermarks",
]
