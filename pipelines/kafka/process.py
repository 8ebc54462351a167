"""What the readers, the writers and the stateful step of a feed share inside one process.

Beam makes instances of a source or a DoFn as it likes, per thread or per bundle. What they have to share is held here,
one object per purpose, and nowhere else. A process runs one feed at a time: `begin_feed` drops what an earlier one
left.
"""

import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from millrace.pipelines.kafka.pace import FeedProgress
from millrace.runtime import telemetry
from millrace.runtime.kafka_positions import Positions

if TYPE_CHECKING:
    from millrace.pipelines.kafka.reader import KafkaBlockReader

__all__ = ["FIRST_POLL", "HEARTBEAT", "RESTING", "SHARDS", "LostShardError", "begin_feed", "progress_of"]


class RestingReaders:
    """Readers between two bundles, by their source and the positions at which they rest, so that any may resume one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[tuple[Hashable, frozenset[tuple[tuple[str, int], int]]], KafkaBlockReader] = {}

    def put(self, source: Hashable, positions: Positions, reader: "KafkaBlockReader") -> None:
        with self._lock:
            self._readers[source, frozenset(positions.items())] = reader

    def take(self, source: Hashable, positions: Positions) -> "KafkaBlockReader | None":
        """The reader that rests there, which then rests no more; None if there is none."""
        with self._lock:
            return self._readers.pop((source, frozenset(positions.items())), None)

    def remove(self, source: Hashable, positions: Positions, reader: "KafkaBlockReader") -> None:
        """`reader` rests no more; another one that rests at the same place stays."""
        key = (source, frozenset(positions.items()))
        with self._lock:
            if self._readers.get(key) is reader:
                del self._readers[key]

    def clear(self) -> None:
        with self._lock:
            self._readers.clear()


class LostShardError(RuntimeError):
    """A shard was in a bundle that failed, on a runner that does no bundle again."""


class ShardCache:
    """Feed shards in memory between two bundles, by (id of the run, number of the shard)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shards: dict[tuple[str, int], Any] = {}
        self._lent: set[tuple[str, int]] = set()
        self._lost: set[tuple[str, int]] = set()

    def take(self, run_id: str, number: int) -> Any:
        """Takes a shard out, for good; None when it is not here."""
        with self._changed:
            return self._shards.pop((run_id, number), None)

    def lend(self, run_id: str, number: int) -> Any:
        """Takes a shard out until `put` or `lose`, after waiting while another bundle has it; None: there is none yet.

        Raises: LostShardError when a bundle that had it has failed.
        """
        key = (run_id, number)
        with self._changed:
            self._changed.wait_for(lambda: key not in self._lent)
            if key in self._lost:
                raise LostShardError(f"shard {number} went down with a bundle that failed")
            self._lent.add(key)
            return self._shards.pop(key, None)

    def lose(self, run_id: str, number: int) -> None:
        """The bundle that has the shard has failed: nobody gets it any more, since what it held is not known."""
        with self._changed:
            self._lost.add((run_id, number))
            self._lent.discard((run_id, number))
            self._changed.notify_all()

    def put(self, run_id: str, number: int, shard: Any) -> None:
        with self._changed:
            self._shards[run_id, number] = shard
            self._lent.discard((run_id, number))
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._shards.clear()
            self._lent.clear()
            self._lost.clear()
            self._changed.notify_all()


HEARTBEAT = telemetry.Heartbeat("reading from Kafka")
"""Beats when a reader of this process is asked for more; `/healthz` of `millrace feed` reports when it stops."""

FIRST_POLL = threading.Event()
"""Set when a reader of this process has asked the brokers for the first time: then the feed is ready."""

RESTING = RestingReaders()
"""Readers that a later bundle resumes, in whatever instance of the source it runs, instead of opening a client."""

SHARDS = ShardCache()
"""Machines of the stateful step, which live longer than the bundles that use them."""

_progress: dict[str, FeedProgress] = {}
_progress_lock = threading.Lock()


def progress_of(feed_id: str) -> FeedProgress:
    """How far the stateful step of this feed has come, as far as it runs in this process."""
    with _progress_lock:
        return _progress.setdefault(feed_id, FeedProgress())


def begin_feed() -> None:
    """Drops what an earlier feed of this process left; called before a feed starts."""
    HEARTBEAT.reset()
    FIRST_POLL.clear()
    for shared in (RESTING, SHARDS):
        shared.clear()
    with _progress_lock:
        _progress.clear()
