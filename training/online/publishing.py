"""Everything that a trainer publishes, once it is the one writer of its model."""

import logging
import threading
from collections.abc import Callable, Collection
from typing import TypeVar

from millrace.ops.embedding_table import EmbeddingStore
from millrace.runtime.errors import StoppedError, UnreachableError, UserError
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.outage import waiting_for
from millrace.runtime.topic_setup import ensure_deltas, ensure_model_events
from millrace.runtime.topics import Topics
from millrace.training.online.options import OnlineOptions
from millrace.training.online.ownership import choose_lineage, next_epoch, taken_over_by
from millrace.training.publish.delta_publisher import DeltaPublisher, message_bytes
from millrace.training.publish.event_publisher import EventPublisher
from millrace.training.publish.exporter import Exporter
from millrace.training.publish.outbox import Outbox
from millrace.training.publish.published import ModelWriter, Published, read_published
from millrace.training.publish.transactions import TransactionalProducer
from millrace.training.publish.versions_in_use import versions_in_use
from millrace.training.state.checkpoint import Restored
from millrace.training.state.lease import Lease
from millrace.training.task import Task
from millrace.training.task.heads import DenseModel

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0  # a broker that is back is used this soon
_Answer = TypeVar("_Answer")


class Publishing:
    """Deltas, events and exports of one trainer.

    Construction makes this process the model's one writer: it checks that the folder holds the model that readers know,
    shuts earlier trainers out of both topics, and takes an epoch above all that were ever used. It waits without limit
    for a broker.

    Args:
      lease: of the model directory; its file gets the lineage and the epoch.
      restored: the checkpoint that the trainer goes on from.
      store, dense: what deltas are read from.
      stop: ends the wait for a broker.
      may_send: as of Outbox.

    Raises:
      UserError: readers know another model than the folder holds.
      StoppedError: `stop` was set.
    """

    def __init__(
        self,
        task: Task,
        connection: KafkaConnection,
        topics: Topics,
        options: OnlineOptions,
        lease: Lease,
        restored: Restored,
        store: EmbeddingStore,
        dense: DenseModel,
        stop: threading.Event,
        may_send: Callable[[], bool],
    ) -> None:
        self._connection, self._topics, self._model, self._namespace = connection, topics, task.name, options.namespace
        self._lease, self._stop, self._folder = lease, stop, options.model_dir
        topic = topics.deltas(task.name)
        _answer(lambda: ensure_model_events(connection, topics.model_events), stop)
        _answer(lambda: ensure_deltas(connection, topic), stop)
        # Refused before it disturbs a trainer that runs.
        self._lineage(self._published(), restored, options)
        record_bytes = _answer(lambda: message_bytes(connection, topic), stop)
        producer = TransactionalProducer(connection, f"millrace-trainer-{topics.prefix}{task.name}", record_bytes)
        self.outbox = Outbox(producer, self._taken_over, may_send)
        _answer(self.outbox.open, stop)
        published = self._published()  # what earlier trainers sent until they were shut out
        exporter = Exporter(task, options.model_dir, ModelWriter(task.name))
        epoch = next_epoch(published, restored, lease.before, exporter.newest_epoch())
        self.writer = ModelWriter(task.name, self._lineage(published, restored, options), epoch)
        lease.raise_to(self.writer.lineage, epoch)
        self.deltas = DeltaPublisher(
            self.outbox, connection, topic, self.writer, store, dense,
            restored.delta_sequence, record_bytes, options.dense_seconds,
        )  # fmt: skip
        self.events = EventPublisher(self.outbox, topics, self.writer, self._namespace, published.version)
        self.exporter = Exporter(task, options.model_dir, self.writer, options.keep_exports, self._in_use)
        _LOG.info("model %s: lineage %s, epoch %d", task.name, self.writer.lineage, epoch)

    def poll(self) -> None:
        """Takes results and sends again what failed.

        Raises:
          LeaseLostError: another trainer has the model; this one must end.
        """
        self.deltas.poll()
        self.events.poll()
        self.outbox.check()

    def close(self) -> None:
        """Ends the thread that publishes; what waits is dropped."""
        self.outbox.close()

    def _published(self) -> Published:
        return _answer(self._read, self._stop)

    def _read(self) -> Published:
        return read_published(self._connection, self._topics, self._model, self._namespace)

    def _lineage(self, published: Published, restored: Restored, options: OnlineOptions) -> str:
        return choose_lineage(published, restored, self._lease.before, options.model_dir, options.new_model)

    def _taken_over(self) -> str | None:
        # Until a record of this epoch is out, another trainer that began at the same time has the same epoch.
        epoch = self.writer.epoch if self.deltas.has_sent else self.writer.epoch - 1
        return taken_over_by(self._read, self._folder, epoch)

    def _in_use(self) -> Collection[int] | None:
        in_use = versions_in_use(self._connection, self._topics, self._model, self._namespace)
        return None if in_use is None else in_use | {self.events.version}


def _answer(ask: Callable[[], _Answer], stop: threading.Event) -> _Answer:
    """What `ask` returns, once a broker is there to answer it."""
    with waiting_for("Kafka") as say:
        while True:
            try:
                return ask()
            except Exception as error:  # whatever the client raises
                if isinstance(error, UserError) and not isinstance(error, UnreachableError):
                    raise
                say(str(error))
            if stop.wait(_RETRY_SECONDS):
                raise StoppedError("stopped while waiting for Kafka")
