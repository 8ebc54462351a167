"""What a topic's name stands for at present: a topic that is deleted and made anew has another id."""

import logging
from collections.abc import Collection
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid
from confluent_kafka.admin import AdminClient

from millrace.runtime.kafka_client import KafkaConnection, make_admin

_LOG = logging.getLogger(__name__)
_NO_ID = str(Uuid(0, 0))  # what brokers before 2.8 give
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.UNSUPPORTED_VERSION,
}


class KafkaTopic(NamedTuple):
    """A topic as the brokers describe it.

    Attributes:
      cluster: id of the cluster; the bootstrap servers where it is not told.
      id: of the topic; `name:` and its name where it is not told.
      partitions: numbers of its partitions, ascending.
    """

    cluster: str
    id: str
    partitions: tuple[int, ...]


class TopicDescriber:
    """Asks the brokers what topics are at present, with one client.

    Where brokers do not tell the ids of topics, a topic that is made anew cannot be told from the old one; a warning
    says so once.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._admin: AdminClient | None = None
        self._cluster: str | None = None
        self._warned = False

    def describe(self, topics: Collection[str], seconds: float) -> dict[str, KafkaTopic]:
        """{topic: what it is}, without topics that do not exist.

        Raises: KafkaException when a question fails or has no answer within `seconds`.
        """
        if self._admin is None:
            self._admin = make_admin(self._connection)
        if self._cluster is None:
            self._cluster = self._cluster_id(self._admin, seconds)
        futures = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=seconds)
        found = {}
        for topic, future in futures.items():
            try:
                description = future.result()
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                if error.args[0].code() not in _DENIED:
                    raise
                found[topic] = self._undescribed(self._admin, topic, seconds)
                continue
            known = str(description.topic_id) if description.topic_id is not None else _NO_ID
            topic_id = self._without_id(topic) if known == _NO_ID else known
            partitions = tuple(sorted(each.id for each in description.partitions))
            found[topic] = KafkaTopic(self._cluster, topic_id, partitions)
        return found

    def _undescribed(self, admin: AdminClient, topic: str, seconds: float) -> KafkaTopic:
        partitions = admin.list_topics(topic, timeout=seconds).topics[topic].partitions
        return KafkaTopic(self._cluster or "", self._without_id(topic), tuple(sorted(partitions)))

    def _cluster_id(self, admin: AdminClient, seconds: float) -> str:
        try:
            found = admin.describe_cluster(request_timeout=seconds).result().cluster_id
        except KafkaException as error:
            if error.args[0].code() not in _DENIED:
                raise
            found = None
        if not found:
            self._warn("the id of the cluster")
        return found or self._connection.bootstrap_servers

    def _without_id(self, topic: str) -> str:
        self._warn(f"the id of {topic}")
        return f"name:{topic}"

    def _warn(self, what: str) -> None:
        if not self._warned:
            _LOG.warning(
                "the brokers do not tell %s: a name stands for it, and rows of a topic that is made anew are taken "
                "for repeats of the old one's",
                what,
            )
        self._warned = True
