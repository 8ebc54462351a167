"""Reads one split of an unbounded Kafka source: blocks, marks, new partitions, lags, and commits that trail behind."""

import copy
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader
from apache_beam.metrics import Metrics
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from millrace.pipelines.kafka.align import DEFAULT_ALIGN_MS, SILENT_SECONDS, PartitionAligner
from millrace.pipelines.kafka.pace import UnderWay, progress_of
from millrace.pipelines.kafka.sink import unfinished
from millrace.pipelines.kafka.watermark import PartitionWatermarks, TimestampPolicy, record_times
from millrace.runtime import telemetry
from millrace.runtime.kafka_blocks import Block, BlockReader, KafkaReadError, Positions
from millrace.transforms.batch import record_batch

__all__ = ["FIRST_POLL", "HEARTBEAT", "KafkaBlockReader", "KafkaMark", "KafkaMarkCoder", "ReaderSettings", "raw_batch"]

_LOG = logging.getLogger(__name__)

_NAMESPACE = telemetry.namespace("pipelines", "kafka_io")
_READ_SECONDS = 0.001
_COMMIT_INTERVAL_SECONDS = 1.0
_LAG_INTERVAL_SECONDS = 1.0
# Enough for a bundle of the stateful step at any rate it reaches, and a few tens of megabytes.
_MAX_UNDER_WAY = 40_000
_METADATA_SECONDS = 1.0  # a request waits for no longer; the next one comes soon enough

_READ = telemetry.counter("feed_records_read", "Records read from Kafka.", ("topic",))
_LAG = telemetry.gauge("feed_lag_records", "Records in Kafka that were not given yet.", ("topic", "partition"))
_SILENT = telemetry.counter(
    "feed_silent_partitions", "Times that others waited in vain for a partition that has more.", ("topic",)
)

HEARTBEAT = telemetry.Heartbeat("reading from Kafka")
"""Beats when a reader of this process is asked for more."""

FIRST_POLL = threading.Event()
"""Set when a reader of this process has asked the brokers for the first time."""


def raw_batch(block: Block) -> pa.RecordBatch:
    """`block` in the raw schema of `millrace.transforms.batch.record_batch`; counts its records as read."""
    batch = pa.record_batch(
        [
            pa.array(block.values, pa.binary()),
            pa.array(block.partitions, pa.int32()),
            pa.array(block.offsets, pa.int64()),
            pa.array(block.timestamps_ms, pa.int64()),
        ],
        schema=record_batch.raw_schema(block.topic),
    )
    Metrics.counter(_NAMESPACE, "records_read").inc(len(block.values))
    Metrics.counter(_NAMESPACE, "bytes_read").inc(batch.column("value").nbytes)
    Metrics.counter(_NAMESPACE, "blocks_read").inc()
    _READ.labels(block.topic).inc(len(block.values))
    return batch


class KafkaMark(CheckpointMark):
    """Position of a split. `on_final` lives only in the process that read."""

    def __init__(self, positions: Mapping[tuple[str, int], int], on_final: Callable[[], None] | None = None) -> None:
        self.positions = dict(positions)
        self._on_final = on_final

    def finalize_checkpoint(self) -> None:
        if self._on_final is not None:
            self._on_final()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KafkaMark) and self.positions == other.positions

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.positions.items())))


class KafkaMarkCoder(coders.Coder):
    """A mark as JSON `[[topic, partition, offset], ...]`, so that a checkpoint outlives the code that wrote it."""

    def encode(self, mark: KafkaMark) -> bytes:
        return json.dumps([[*key, offset] for key, offset in sorted(mark.positions.items())]).encode()

    def decode(self, encoded: bytes) -> KafkaMark:
        return KafkaMark({(topic, partition): offset for topic, partition, offset in json.loads(encoded)})

    def is_deterministic(self) -> bool:
        return True


@dataclass(frozen=True)
class ReaderSettings:
    """How to read; see `millrace.pipelines.kafka.source.ReadFromKafka`.

    Args:
      feed_id: the feed whose stateful step sets the pace (`millrace.pipelines.kafka.pace`); None: the runner does.
      align_ms: how far a record may be ahead of the partitions that have more to read (`pipelines.kafka.align`).
      splits, index: this split reads the new partitions whose number modulo `splits` is `index`.
    """

    max_records: int = 2000
    commit_delay_seconds: float = 0.0
    timestamp_policy: TimestampPolicy = "record_time"
    metadata_seconds: float | None = None
    feed_id: str | None = None
    align_ms: int = DEFAULT_ALIGN_MS
    splits: int = 1
    index: int = 0


class KafkaBlockReader(UnboundedReader):
    """Gives one block per advance, without waiting; holds back what is ahead of other partitions.

    A read that was not full is the last of its bundle: at any rate of records there are a few more a moment later, and
    small blocks cost as much as large ones.

    Beam parks a reader between bundles with the instance of the step that used it. Flink resumes a split in any of its
    many instances, each of which would open a client of its own while the parked ones keep their threads and buffers:
    a reader that rests at a mark is therefore handed on to whoever resumes from that mark in this process.

    Args:
      open_at: opens a client at some positions.
      start: where to begin.
      topics: whose new partitions are read too.
      source: tells readers of different splits apart.
    """

    def __init__(
        self,
        open_at: Callable[[Positions], BlockReader],
        start: Mapping[tuple[str, int], int],
        settings: ReaderSettings,
        topics: tuple[str, ...] = (),
        source: Hashable = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._open_at, self._settings, self._topics, self._source = open_at, settings, topics, source
        self._clock, self._wall_clock = clock, wall_clock
        self._given: Positions = dict(start)
        self._timestamp = MIN_TIMESTAMP
        self._watermarks = PartitionWatermarks(start, clock, wall_clock)
        self._block: pa.RecordBatch | None = None
        self._bundle_done = False
        self._next_lag = self._next_metadata = 0.0
        self._missing: set[tuple[str, int]] = set()
        self._under_way: UnderWay | None = None
        if settings.feed_id is not None:
            self._under_way = UnderWay(progress_of(settings.feed_id), unfinished.none)
        self._open()

    def _open(self) -> None:
        self._reader: BlockReader | None = self._open_at(self._given)
        self._commits = _TrailingCommits(
            self._reader.commit, self._settings.commit_delay_seconds, self._clock, unfinished.oldest, self._under_way
        )
        # What these hold was not given yet: the mark does not cover it.
        self._aligner = PartitionAligner(
            self._given, self._settings.align_ms, self._settings.max_records, self._clock, self._wall_clock
        )
        self._read: deque[Block] = deque()

    def successor(self) -> "KafkaBlockReader":
        """A reader that goes on with this one's client; this one opens another should it ever be resumed."""
        reader = copy.copy(self)
        reader._given = dict(self._given)
        self._reader = None
        return reader

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        HEARTBEAT.beat()
        resting.remove(self._source, self._given, self)
        if self._reader is None:
            self._open()
        assert self._reader is not None
        if not self._read and not self._bundle_done:
            if self._under_way is not None and self._under_way.records() >= _MAX_UNDER_WAY:
                return False
            self._fill(self._reader)
        if not self._read:
            return False
        self._give(self._read.popleft())
        return True

    def _fill(self, reader: BlockReader) -> None:
        """What is next: of what is held, else of what can be read."""
        self._read.extend(self._aligner.give())
        while not self._read and not self._bundle_done:
            self._look_around(reader)
            self._throttle(reader)
            blocks = reader.read(self._settings.max_records, _READ_SECONDS)
            FIRST_POLL.set()
            self._bundle_done = sum(len(block.values) for block in blocks) < self._settings.max_records
            for topic, partition in self._aligner.take(blocks, reader.lags()):
                _LOG.warning("%s[%d] gives nothing for %g s: others go on", topic, partition, SILENT_SECONDS)
                _SILENT.labels(topic).inc()
                Metrics.counter(_NAMESPACE, "silent_partitions").inc()
            self._read.extend(self._aligner.give())

    def _throttle(self, reader: BlockReader) -> None:
        full, drained = self._aligner.throttle()
        if full:
            reader.pause(full)
        if drained:
            reader.resume(drained)

    def _give(self, block: Block) -> None:
        for partition, offset in dict(zip(block.partitions, block.offsets, strict=True)).items():
            self._given[block.topic, partition] = offset + 1
        times = record_times(block, self._settings.timestamp_policy, self._wall_clock())
        self._timestamp = min(times.values())
        if self._under_way is not None:
            self._under_way.given(self._timestamp, len(block.values))
        self._watermarks.read(block.topic, times)
        self._block = raw_batch(block)

    def _look_around(self, reader: BlockReader) -> None:
        """Now and then: how far behind the ends, and which partitions are new."""
        now = self._clock()
        if now >= self._next_lag:
            self._next_lag = now + _LAG_INTERVAL_SECONDS
            self._measure_lags(reader)
        every = self._settings.metadata_seconds
        if every is not None and now >= self._next_metadata:
            # The first look comes later: the start was made of what the brokers had then.
            if self._next_metadata:
                self._find_partitions(reader)
            self._next_metadata = now + every

    def _measure_lags(self, reader: BlockReader) -> None:
        lags = {key: None if lag is None else lag + self._aligner.held(key) for key, lag in reader.lags().items()}
        for key, lag in lags.items():
            self._watermarks.caught_up(key, lag == 0)
            if lag is not None:
                _LAG.labels(*map(str, key)).set(lag)
        Metrics.gauge(_NAMESPACE, "lag_records").set(sum(lag or 0 for lag in lags.values()))

    def _find_partitions(self, reader: BlockReader) -> None:
        found = reader.partitions(self._topics, _METADATA_SECONDS)
        if not found:
            return
        self._notice_missing({(topic, number) for topic, numbers in found.items() for number in numbers})
        for topic, numbers in found.items():
            for number in numbers:
                mine = number % self._settings.splits == self._settings.index
                if mine and (topic, number) not in self._given:
                    self._take_over(reader, topic, number)

    def _notice_missing(self, there: set[tuple[str, int]]) -> None:
        """Raises KafkaReadError when a partition was missing twice: a broker that has just started may not know all."""
        missing = set(self._given) - there
        gone = sorted(missing & self._missing)
        if gone:
            raise KafkaReadError(f"{gone[0][0]}[{gone[0][1]}] does not exist any more; was the topic deleted?")
        self._missing = missing

    def _take_over(self, reader: BlockReader, topic: str, partition: int) -> None:
        first = reader.first_offset(topic, partition, _METADATA_SECONDS)
        if first is None:  # no leader yet: the next look finds it again
            return
        start = {(topic, partition): first}
        reader.add(start)
        self._watermarks.add(start)
        self._aligner.add(start)
        self._given |= start

    def get_current(self) -> pa.RecordBatch:
        return self._block

    def get_current_timestamp(self) -> Timestamp:
        return self._timestamp

    def get_watermark(self) -> Timestamp:
        return self._watermarks.value()

    def get_checkpoint_mark(self) -> KafkaMark:
        self._bundle_done = False
        positions, read_at, commits = dict(self._given), self._timestamp, self._commits
        resting.put(self._source, positions, self)
        return KafkaMark(positions, lambda: commits.reached(positions, read_at))

    def close(self) -> None:
        resting.remove(self._source, self._given, self)
        if self._reader is not None:
            self._commits.end()
            self._reader.close()
            self._reader = None


class _Resting:
    """Readers of this process that rest at a mark, by source and mark."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[tuple[Hashable, frozenset[tuple[tuple[str, int], int]]], KafkaBlockReader] = {}

    def put(self, source: Hashable, positions: Positions, reader: KafkaBlockReader) -> None:
        with self._lock:
            self._readers[source, frozenset(positions.items())] = reader

    def take(self, source: Hashable, positions: Positions) -> KafkaBlockReader | None:
        with self._lock:
            return self._readers.pop((source, frozenset(positions.items())), None)

    def remove(self, source: Hashable, positions: Positions, reader: KafkaBlockReader) -> None:
        key = (source, frozenset(positions.items()))
        with self._lock:
            if self._readers.get(key) is reader:
                del self._readers[key]


resting = _Resting()


class _TrailingCommits:
    """Commits offsets `delay` seconds after what is before them became final, once a second at most.

    The delay is the longest that a stateful step holds a row when it is on time. What is late does not count: a bundle
    that writes and is not acknowledged yet may hold rows that were due when it began. And where such a step sets the
    pace, the delay begins when the step has processed the records, and lasts for as long as its oldest row is late.
    """

    def __init__(
        self,
        commit: Callable[[Positions], None],
        delay: float,
        clock: Callable[[], float],
        oldest_write: Callable[[], float] = unfinished.oldest,
        under_way: UnderWay | None = None,
    ) -> None:
        self._commit, self._delay, self._clock = commit, delay, clock
        self._oldest_write, self._under_way = oldest_write, under_way
        self._final: deque[tuple[Timestamp, Positions]] = deque()
        self._waiting: deque[tuple[float, Positions]] = deque()
        self._committed: Positions = {}
        self._next_commit = 0.0
        self._ended = False

    def end(self) -> None:
        """The client is gone: what becomes final now is committed by a later reader."""
        self._ended = True

    def reached(self, positions: Positions, read_at: Timestamp = MIN_TIMESTAMP) -> None:
        """A bundle is final that ended at `positions`, its last block read at `read_at`."""
        if self._ended:
            return
        now = self._clock()
        self._final.append((read_at, positions))
        while self._final and (self._under_way is None or self._under_way.processed(self._final[0][0])):
            self._waiting.append((now, self._final.popleft()[1]))
        if now < self._next_commit:
            return
        on_time = self._on_time(now)
        ripe: Positions = {}
        while self._waiting and self._waiting[0][0] <= on_time - self._delay:
            ripe = self._waiting.popleft()[1]
        if ripe and ripe != self._committed:
            self._commit(ripe)
            self._committed = ripe
        self._next_commit = now + _COMMIT_INTERVAL_SECONDS

    def _on_time(self, now: float) -> float:
        """Until when everything that was due has left."""
        if not self._delay:  # no step holds anything back
            return now
        due = self._under_way.progress.due() if self._under_way else now
        return min(now, due, self._oldest_write())
