"""What agents say on `serving.status` of servers that need an export: such a server has lost or refused a delta."""

import json
import logging
import threading
import time
from collections.abc import Callable

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END

from millrace.runtime.errors import FOREIGN_JSON_ERRORS, UnreachableError, UserError
from millrace.runtime.kafka_client import KafkaConnection, partitions_of
from millrace.runtime.telemetry import LogLimit
from millrace.runtime.topic_reader import TopicReader

_LOG = logging.getLogger(__name__)
_LEAST_SECONDS = (
    30.0  # between two exports that are asked for: time to load one, and to ask again where it did not help
)
_LOOK_SECONDS = 5.0  # between two looks for a topic that no agent has made yet, or after an error
_LOG_SECONDS = 600.0  # a loop without agents has no such topic, which is no fault
_POLL_SECONDS = 1.0  # a server asks by what it says every 10 s; training is stopped no later than after this


class ResyncRequests:
    """Says once for each request that an export is needed. Thread-safe.

    A request names the version that the server has. Every newer version answers it: so a server that refuses the newest
    one, is held, or still loads it makes no trainer export on and on.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, model: str, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self._namespace, self._clock = model, namespace, clock
        self._version = 0  # the newest one for which an export was asked and not taken yet
        self._next = clock()
        self._lock = threading.Lock()

    def add(self, value: bytes) -> None:
        """Takes a status; passes over what is of another model, or no status."""
        try:
            status = json.loads(value)
            if (status["model_name"], status["bzid"]) != (self._model, self._namespace):
                return
            if not status["resync_required"] or status["is_held"]:
                return
            version = int(status["target_version"])
        except FOREIGN_JSON_ERRORS:
            return  # somebody else's
        with self._lock:
            self._version = max(self._version, version)

    def take(self, newest: int) -> bool:
        """Whether to export now, at most once in 30 s. The request counts as taken then.

        Args:
          newest: the newest version that was announced; requests of servers with older ones are answered by it.
        """
        with self._lock:
            if self._version < newest:
                self._version = 0
            if not self._version or self._clock() < self._next:
                return False
            _LOG.warning("a server of version %d has lost a delta: an export is made for it now", self._version)
            self._version, self._next = 0, self._clock() + _LEAST_SECONDS
            return True


class ResyncReader:
    """Gives each new status on `serving.status` to `requests`, on a thread of its own. Waits out all errors."""

    def __init__(self, connection: KafkaConnection, topic: str, requests: ResyncRequests) -> None:
        self._connection, self._topic, self._requests = connection, topic, requests
        self._stop, self._limit = threading.Event(), LogLimit(_LOG_SECONDS)
        self._thread = threading.Thread(target=self._run, name="resync-reader", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_LOOK_SECONDS)

    def _run(self) -> None:
        start = OFFSET_END  # what was said before the start is said again every 10 s while it holds
        while not self._stop.is_set():
            try:
                partitions = partitions_of(self._connection, self._topic)
                self._read(TopicReader(self._connection, self._topic, dict.fromkeys(partitions, start)))
            except Exception as error:  # whatever the client raises
                if isinstance(error, UserError) and not isinstance(error, UnreachableError):
                    start = OFFSET_BEGINNING  # no agent has ever reported: all that one will say is new
                if self._limit.count(type(error).__name__):
                    _LOG.info("%s is not read, so exports are made by schedule only: %s", self._topic, error)
            self._stop.wait(_LOOK_SECONDS)

    def _read(self, reader: TopicReader) -> None:
        try:
            while not self._stop.is_set():
                for record in reader.read(seconds=_POLL_SECONDS):
                    self._requests.add(record.value or b"")
        finally:
            reader.close()
