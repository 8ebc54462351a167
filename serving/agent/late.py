"""Clients of servers that may be away when a process starts: made on a thread, so that work goes on without them."""

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from millrace.runtime.errors import StoppedError
from millrace.runtime.outage import while_away
from millrace.runtime.topic_reader import Record


class Closable(Protocol):
    def close(self) -> None: ...


_Client = TypeVar("_Client", bound=Closable)


class Late(Generic[_Client]):
    """A client that is there once its server has answered.

    Args:
      make: makes it; called again while the server is away.
      what: the server and its address, for the log and `/healthz`.
    """

    def __init__(self, make: Callable[[], _Client], what: str) -> None:
        self._make, self._what = make, what
        self._client: _Client | None = None
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"waits for {what}", daemon=True)
        self._thread.start()

    def get(self) -> _Client | None:
        """The client, None while its server is away. Raises what making it raised, if that was no outage."""
        if self._error is not None:
            raise self._error
        return self._client

    def close(self) -> None:
        """Ends the wait, and closes the client if there is one."""
        self._stop.set()
        self._thread.join()
        if self._client is not None:
            self._client.close()

    def _run(self) -> None:
        try:
            self._client = while_away(self._make, self._what, self._stop)
        except StoppedError:
            pass
        except Exception as error:  # a setting is wrong: the process ends with it
            self._error = error


class EventReader(Closable, Protocol):
    """The part of `millrace.runtime.topic_reader.TopicReader` that is used here."""

    def read(self, max_records: int = ..., seconds: float = ...) -> list[Record]: ...

    def reached_end(self) -> bool: ...


class LateEvents:
    """Events from a reader that may come late: until then there are none, and their end is not reached."""

    def __init__(self, reader: Late[EventReader]) -> None:
        self._reader = reader
        self._never = threading.Event()

    def read(self, max_records: int = 500, seconds: float = 0.02) -> list[Record]:
        """Up to `max_records` next records; [] after `seconds` without any."""
        reader = self._reader.get()
        if reader is None:
            self._never.wait(seconds)
            return []
        return reader.read(max_records, seconds)

    def reached_end(self) -> bool:
        """Whether all that the topic held at first was read."""
        reader = self._reader.get()
        return reader is not None and reader.reached_end()
