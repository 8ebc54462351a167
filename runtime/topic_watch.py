"""Notices that a topic was deleted and made anew: then offsets mean other records."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future

from confluent_kafka import KafkaException, TopicCollection

from millrace.runtime.kafka_client import KafkaConnection, make_admin

_LOG = logging.getLogger(__name__)
# A topic that is made anew loses what was in it, so its readers are late by its nature; the request is cheap.
_SECONDS = 5.0
_REQUEST_SECONDS = 10.0


class TopicWatch:
    """Asks for the id of a topic now and then, without blocking.

    Args:
      seconds: between two requests.
      clock: monotonic seconds.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        seconds: float = _SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._seconds = seconds
        self._clock = clock
        self._admin = make_admin(connection)
        self._answer: Future[object] | None = None
        self._next_request = clock()
        self._known: str | None = None

    def is_new(self) -> bool:
        """Whether the topic is another one than at the answer before; False while no broker answers."""
        if self._answer is None:
            if self._clock() >= self._next_request:
                self._next_request = self._clock() + self._seconds
                topics = TopicCollection([self._topic])
                self._answer = self._admin.describe_topics(topics, request_timeout=_REQUEST_SECONDS)[self._topic]
            return False
        if not self._answer.done():
            return False
        answer, self._answer = self._answer, None
        try:
            found = str(answer.result().topic_id)  # type: ignore[attr-defined]
        except KafkaException as error:  # no broker, or no such topic at the moment
            _LOG.debug("id of %s: %s", self._topic, error)
            return False
        before, self._known = self._known, found
        return before not in (None, found)
