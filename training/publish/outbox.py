"""The trainer's one way to Kafka: a thread that owns its transactional producer."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from millrace.runtime.kafka_client import UndeliveredError
from millrace.training.publish.transactions import FencedError, TransactionalProducer
from millrace.training.state.lease import LeaseLostError

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Sending(Protocol[_Result]):  # type: ignore[misc]  # a result is only returned
    """What `Outbox.submit` runs."""

    def __call__(self, producer: TransactionalProducer) -> _Result: ...


class Outbox:
    """Runs on one thread what sends deltas and events, so that no commit of a transaction holds up training.

    A trainer has one delta and one announcement under way at most, so little waits here.

    Args:
      producer: is opened when something is to be sent and it is not open.
      taken_over: who has the model now; None: nobody, it is still this trainer's. Asked when the broker has fenced the
        producer, which it also does after a transaction that took too long.
      may_send: whether this trainer may publish now; what is to be sent meanwhile fails and is sent again later. It
        may raise LeaseLostError.

    Attributes:
      lost: set for good once another trainer has the model. Nothing is sent from then on.
    """

    def __init__(
        self,
        producer: TransactionalProducer,
        taken_over: Callable[[], str | None],
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        self._producer, self._taken_over, self._may_send = producer, taken_over, may_send
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._after_open: list[Callable[[], None]] = []
        self.lost: LeaseLostError | None = None

    def open(self) -> None:
        """Opens the producer, so that earlier trainers are shut out; returns when that is done.

        Raises:
          UndeliveredError: no broker answers; to be tried again.
        """
        self.submit(lambda producer: None).result()

    def after_open(self, call: Callable[[], None]) -> None:
        """Has `call` called on the thread each time after the producer was opened, before anything is sent.

        What an earlier turn sent last is settled then, and can be read.
        """
        self._after_open.append(call)

    def submit(self, work: Sending[_Result]) -> "Future[_Result]":
        """Runs `work` on the thread. Its future has the exception of what could not be sent."""
        return self._thread.submit(self._run, work)

    def check(self) -> None:
        """Raises LeaseLostError once another trainer has the model."""
        if self.lost is not None:
            raise self.lost

    def close(self) -> None:
        """Ends the thread after the work under way; what waits is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._producer.close()

    def _run(self, work: Sending[_Result]) -> _Result:
        self.check()
        try:
            if not self._may_send():
                raise UndeliveredError("the lease is not certain now: publishing waits")
            if not self._producer.is_open:
                self._open()
            return work(self._producer)
        except LeaseLostError as error:
            self.lost = error
            raise
        except FencedError as error:
            owner = self._owner_after(error)
            if owner is not None:
                self.lost = LeaseLostError(f"{owner} has taken over; this trainer has published nothing since")
                raise self.lost from error
            raise

    def _open(self) -> None:
        start = time.monotonic()
        self._producer.open()
        for call in self._after_open:
            call()
        _LOG.info("transactions are ready after %.2f s", time.monotonic() - start)

    def _owner_after(self, error: FencedError) -> str | None:
        """Who has the model now; None when nobody has, or nobody knows: the producer is opened again then."""
        try:
            return self._taken_over()
        except Exception as problem:  # whatever the client raises: the broker is away
            _LOG.warning("fenced (%s), and the topics do not say by whom: %s", error, problem)
            return None
