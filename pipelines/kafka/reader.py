"""Reads one split of an unbounded Kafka source: gives blocks and marks, finds new partitions, measures lags."""

import copy
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader
from apache_beam.metrics import Metrics
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from millrace.pipelines.kafka.align import DEFAULT_ALIGN_MS, SILENT_SECONDS, PartitionAligner
from millrace.pipelines.kafka.commits import FloorCommits
from millrace.pipelines.kafka.pace import FeedProgress, UnderWay
from millrace.pipelines.kafka.process import FIRST_POLL, HEARTBEAT, RESTING, progress_of
from millrace.pipelines.kafka.topic_sources import commit_tag, note_cut, note_lost, number_of
from millrace.pipelines.kafka.watermark import PartitionWatermarks, TimestampPolicy, record_times
from millrace.runtime import telemetry
from millrace.runtime.kafka_positions import Partition, Positions
from millrace.runtime.kafka_records import KafkaReadError, OffsetGoneError, PartitionReader, TopicRecords
from millrace.runtime.kafka_topics import KafkaTopic
from millrace.transforms.batch.provenance import source_partition
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.feed.spans import Span, with_spans

__all__ = ["KafkaBlockReader", "KafkaMark", "KafkaMarkCoder", "ReaderSettings", "counted_block"]

_LOG = logging.getLogger(__name__)

_NAMESPACE = telemetry.namespace("pipelines", "kafka_io")
# `advance` may not wait: it takes what the client has fetched in the background.
_READ_SECONDS = 0.001
# Lags are read off what the client knows anyway; each second is often enough for a gauge and for the watermark.
_LAG_INTERVAL_SECONDS = 1.0
# Records that were given and not processed: some tens of megabytes, and enough to keep the stateful step busy while a
# reader sleeps between two bundles.
_MAX_UNDER_WAY = 40_000
# The longest wait for metadata, which a bundle spends idle; a request that was given up is repeated later.
_METADATA_SECONDS = 1.0
_TICK_SECONDS = 1.0

_READ = telemetry.counter("feed_records_read", "Records read from Kafka.", ("topic",))
_LAG = telemetry.gauge("feed_lag_records", "Records in Kafka that were not given yet.", ("topic", "partition"))
_SILENT = telemetry.counter(
    "feed_silent_partitions", "Times that others waited in vain for a partition that has more.", ("topic",)
)

_ANEW = telemetry.counter("feed_topics_made_anew", "Times that a topic was made anew while it was read.", ("topic",))
_DROPPED = telemetry.counter(
    "feed_records_dropped", "Records that were read, and not given before their topic was made anew.", ("topic",)
)


def counted_block(records: TopicRecords, source: int) -> pa.RecordBatch:
    """The raw block (`millrace.transforms.batch.raw_block`) of these records of a source; counts them as read."""
    raw = raw_block(records.topic, records.values, records.partitions, records.offsets, records.timestamps_ms, source)
    Metrics.counter(_NAMESPACE, "records_read").inc(len(records.values))
    Metrics.counter(_NAMESPACE, "bytes_read").inc(raw.column("value").nbytes)
    Metrics.counter(_NAMESPACE, "blocks_read").inc()
    _READ.labels(records.topic).inc(len(records.values))
    return raw


class KafkaMark(CheckpointMark):
    """The position of a split.

    Args:
      positions: {(topic, partition): next offset}.
      sources: {topic: number of the source that the offsets belong to}; empty while that is not known.
      on_final: called when the bundle that ends here is final; not part of the encoded mark, so that only the process
        that read calls it.
    """

    def __init__(
        self,
        positions: Mapping[tuple[str, int], int],
        sources: Mapping[str, int] | None = None,
        on_final: Callable[[], None] | None = None,
    ) -> None:
        self.positions, self.sources = dict(positions), dict(sources or {})
        self._on_final = on_final

    def finalize_checkpoint(self) -> None:
        if self._on_final is not None:
            self._on_final()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KafkaMark) and (self.positions, self.sources) == (other.positions, other.sources)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.positions.items())))


class KafkaMarkCoder(coders.Coder):
    """A mark as JSON `[[topic, partition, offset, source], ...]`, so that a checkpoint outlives the code that wrote it.

    The number of the source is 0 while it is not known.
    """

    def encode(self, mark: KafkaMark) -> bytes:
        return json.dumps(
            [[*key, offset, mark.sources.get(key[0], 0)] for key, offset in sorted(mark.positions.items())]
        ).encode()

    def decode(self, encoded: bytes) -> KafkaMark:
        entries = json.loads(encoded)
        positions = {(topic, partition): offset for topic, partition, offset, *_ in entries}
        return KafkaMark(positions, {entry[0]: entry[3] for entry in entries if len(entry) > 3 and entry[3]})

    def is_deterministic(self) -> bool:
        return True


@dataclass(frozen=True)
class ReaderSettings:
    """How to read; see `millrace.pipelines.kafka.source.ReadFromKafka`.

    Args:
      feed_id: of the feed whose stateful step tells what may be committed (`millrace.pipelines.kafka.pace`); None: what
        is final is committed.
      paced: whether that step sets the pace too, and processing times are the time stamps.
      align_ms: how far a record may be ahead of the partitions that have more to read (`pipelines.kafka.align`).
      splits, index: this split reads the new partitions whose number modulo `splits` is `index`.
    """

    max_records: int = 2000
    timestamp_policy: TimestampPolicy = "record_time"
    metadata_seconds: float | None = None
    feed_id: str | None = None
    paced: bool = False
    align_ms: int = DEFAULT_ALIGN_MS
    splits: int = 1
    index: int = 0


class KafkaBlockReader(UnboundedReader):
    """Gives one block per `advance`, without waiting; holds back records that are ahead of other partitions.

    A bundle ends with the first read that was not full. At any rate a few more records arrive a moment later, and a
    small block costs a bundle as much as a large one.

    Between two bundles Beam keeps a reader in the instance of the step that used it. Flink resumes a split in any of
    its many instances; each would open a client of its own, while the clients of the others keep their threads and
    buffers. So a reader rests at the mark that ends its bundle (`process.RESTING`), and whoever resumes from that mark
    in this process takes it over.

    Args:
      open_at: opens a client at {(topic, partition): offset}.
      start: {(topic, partition): first offset}.
      topics: topics whose new partitions are read too.
      source: tells readers of different splits apart.
      clock: seconds, monotonic.
      wall_clock: seconds since the epoch.
      sources: {topic: number of the source that the offsets in `start` belong to}, as far as it is known.

    A block carries its spans (`millrace.transforms.feed.spans`). A topic that was made anew is read from its beginning,
    offsets that retention has removed are counted and passed over, and a partition that was cut short is read on from
    its end.
    """

    def __init__(
        self,
        open_at: Callable[[Positions], PartitionReader],
        start: Mapping[tuple[str, int], int],
        settings: ReaderSettings,
        topics: tuple[str, ...] = (),
        source: Hashable = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sources: Mapping[str, int] | None = None,
    ) -> None:
        self._open_at, self._settings, self._topics, self._source = open_at, settings, topics, source
        self._clock, self._wall_clock = clock, wall_clock
        self._given: Positions = dict(start)
        self._begin: Positions = dict(start)
        self._sources: dict[str, int] = dict(sources or {})
        self._timestamp = MIN_TIMESTAMP
        self._watermarks = PartitionWatermarks(start, clock, wall_clock)
        self._block: pa.RecordBatch | None = None
        self._bundle_done = False
        self._next_lag = self._next_metadata = self._next_trouble = self._next_tick = 0.0
        self._missing: set[tuple[str, int]] = set()
        self._progress: FeedProgress | None = None if settings.feed_id is None else progress_of(settings.feed_id)
        self._under_way = UnderWay(self._progress) if self._progress is not None and settings.paced else None
        self._open()

    def _open(self) -> None:
        self._reader: PartitionReader | None = self._open_at(self._given)
        client, sources = self._reader, self._sources

        def commit(positions: Positions) -> None:
            client.commit(positions, {topic: commit_tag(number) for topic, number in sources.items()})

        self._commits = FloorCommits(commit, self._clock, None if self._progress is None else self._floors)
        self._identified = False
        self._troubled: dict[Partition, KafkaReadError] = {}
        # These two hold records that were read and not given. No mark covers them, so a new client reads them again.
        self._aligner = PartitionAligner(
            self._given, self._settings.align_ms, self._settings.max_records, self._clock, self._wall_clock
        )
        self._read: deque[TopicRecords] = deque()
        self._unsure: list[TopicRecords] = []

    def successor(self) -> "KafkaBlockReader":
        """A reader that goes on with the client of this one; this one opens another should it be resumed after all."""
        reader = copy.copy(self)
        reader._given, reader._begin = dict(self._given), dict(self._begin)
        self._reader = None
        return reader

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        HEARTBEAT.beat()
        RESTING.remove(self._source, self._given, self)
        if self._reader is None:
            self._open()
        assert self._reader is not None
        if not self._identified and not self._look(self._reader):
            return False
        if not self._read and not self._bundle_done:
            if self._under_way is not None and self._under_way.records() >= _MAX_UNDER_WAY:
                return False
            self._fill(self._reader)
        if not self._read:
            return self._tick()
        self._give(self._read.popleft())
        return True

    def _tick(self) -> bool:
        """Gives a block without records when rows are overdue: each shard gets it, and looks at its own clock.

        The runner's timers follow the clock of the machine. When that steps back, they come late by as much.
        """
        now = self._clock()
        if self._progress is None or now < self._next_tick or not self._progress.overdue():
            return False
        self._next_tick = now + _TICK_SECONDS
        topic = self._topics[0]
        self._timestamp = max(self._timestamp, Timestamp.of(self._wall_clock()))
        self._block = with_spans(raw_block(topic, [], [], [], [], self._sources[topic]), ())
        return True

    def _fill(self, reader: PartitionReader) -> None:
        """Finds the records to give next: among those that are held, else by reading more."""
        self._read.extend(self._aligner.give())
        while not self._read and not self._bundle_done:
            self._inspect(reader)
            self._throttle(reader)
            if not self._unsure:
                self._unsure = reader.read(self._settings.max_records, _READ_SECONDS, self._troubled)
                FIRST_POLL.set()
            count = sum(len(records.values) for records in self._unsure)
            self._bundle_done = count < self._settings.max_records
            read = self._confirmed(reader)
            if read is None:
                self._bundle_done = True
                return
            for topic, partition in self._aligner.take(read, reader.lags()):
                _LOG.warning(
                    "%s[%d] has given nothing for %g s: the other partitions no longer wait for it",
                    topic,
                    partition,
                    SILENT_SECONDS,
                )
                _SILENT.labels(topic).inc()
                Metrics.counter(_NAMESPACE, "silent_partitions").inc()
            self._read.extend(self._aligner.give())

    def _confirmed(self, reader: PartitionReader) -> list[TopicRecords] | None:
        """The records that were read last, once it is known whose they are; None until a broker has told.

        The client asks for records by the topic's name. When a topic is made anew and soon has more records than the
        old one had, the client goes on in it as if nothing had happened. So the topics are asked for after the
        records: one that is still the same then was the same when they were read.
        """
        topics = {records.topic for records in self._unsure}
        if topics:
            found = reader.describe(sorted(topics), _METADATA_SECONDS)
            if found is None or not topics <= set(found):
                return None
            for topic in sorted(topics):
                self._identify(reader, topic, found[topic])
        confirmed, self._unsure = self._unsure, []
        return confirmed

    def _identify(self, reader: PartitionReader, topic: str, found: KafkaTopic) -> None:
        """Notes which topic has this name; one that was made anew is read from its beginning."""
        number = number_of(found)
        if self._sources.setdefault(topic, number) != number:
            self._start_anew(reader, topic, number, found)

    def _throttle(self, reader: PartitionReader) -> None:
        full, drained = self._aligner.throttle()
        if full:
            reader.pause(full)
        if drained:
            reader.resume(drained)

    def _give(self, records: TopicRecords) -> None:
        source, spans = self._sources[records.topic], []
        for partition, offset in dict(zip(records.partitions, records.offsets, strict=True)).items():
            key = (records.topic, partition)
            number = source_partition(source, partition)
            spans.append(Span(number, self._begin[key], self._given[key], offset + 1))
            self._given[key] = offset + 1
        times = record_times(records, self._settings.timestamp_policy, self._wall_clock())
        self._timestamp = min(times.values())
        if self._under_way is not None:
            self._under_way.given(spans)
        self._watermarks.read(records.topic, times)
        self._block = counted_block(records, source)
        if self._progress is not None:
            self._block = with_spans(self._block, spans)

    def _inspect(self, reader: PartitionReader) -> None:
        """Measures lags and looks for new partitions, when the time for either has come."""
        now = self._clock()
        if now >= self._next_lag:
            self._next_lag = now + _LAG_INTERVAL_SECONDS
            self._measure_lags(reader)
        every = self._settings.metadata_seconds
        if (self._troubled and now >= self._next_trouble) or (every is not None and now >= self._next_metadata):
            self._look(reader)

    def _measure_lags(self, reader: PartitionReader) -> None:
        lags = {key: None if lag is None else lag + self._aligner.held(key) for key, lag in reader.lags().items()}
        for key, lag in lags.items():
            self._watermarks.caught_up(key, lag == 0)
            if lag is not None:
                _LAG.labels(*map(str, key)).set(lag)
        Metrics.gauge(_NAMESPACE, "lag_records").set(sum(lag or 0 for lag in lags.values()))

    def _look(self, reader: PartitionReader) -> bool:
        """Asks what the topics are now, and reads what is new of them; returns whether all of them are known."""
        is_first = not self._identified
        now = self._clock()
        self._next_metadata = now + (self._settings.metadata_seconds or _METADATA_SECONDS)
        self._next_trouble = now + _METADATA_SECONDS
        found = reader.describe(self._topics, _METADATA_SECONDS)
        if found is None:
            return False
        for topic, each in found.items():
            self._identify(reader, topic, each)
        self._notice_missing({(topic, number) for topic, each in found.items() for number in each.partitions})
        # Not the first time: `start` names the partitions that the brokers had a moment ago.
        if not is_first and self._settings.metadata_seconds is not None:
            for topic, each in found.items():
                self._take_over(reader, topic, each)
        self._identified = self._identified or set(self._topics) <= set(found)
        self._pass_over(reader, set(found))
        return self._identified

    def _start_anew(self, reader: PartitionReader, topic: str, number: int, now: KafkaTopic) -> None:
        """From now on reads the topic that has this name now, from its beginning."""
        old = [key for key in self._given if key[0] == topic]
        held = [records for records in (*self._read, *self._unsure) if records.topic == topic]
        unread = sum(len(records.values) for records in held)
        self._read = deque(records for records in self._read if records.topic != topic)
        self._unsure = [records for records in self._unsure if records.topic != topic]
        unread += self._aligner.remove(old)
        reader.remove(old)
        self._watermarks.remove(old)
        for key in old:
            del self._given[key], self._begin[key]
            self._troubled.pop(key, None)
        self._missing -= set(old)
        self._sources[topic] = number
        _ANEW.labels(topic).inc()
        _DROPPED.labels(topic).inc(unread)
        _LOG.warning(
            "%s was made anew: reading it from its beginning; %d records that were read before and not given yet are "
            "dropped, since they may be the old one's",
            topic,
            unread,
        )
        self._take_over(reader, topic, now)

    def _pass_over(self, reader: PartitionReader, topics: set[str]) -> None:
        """Reads on partitions that had stopped.

        Where retention has removed the next offset, from the first one. Where a partition has become shorter, though
        it is the same topic, from its end: an unclean election of a leader, or a broker that was restored, has cut it.
        What the new leader has put at offsets that were read before cannot be told from what was read there.
        """
        for key in [key for key in self._troubled if key[0] in topics and key in self._given]:
            extent = reader.extent(*key, _METADATA_SECONDS)
            if extent is None:
                continue
            problem, wanted, (first, end) = self._troubled.pop(key), reader.positions()[key], extent
            if isinstance(problem, OffsetGoneError):
                # An offset that exists: the client spoke of one that was asked of the topic before it was made anew.
                if wanted > end:
                    note_cut(key, wanted, end)
                if wanted < first:
                    note_lost(key, wanted, first)
            start = min(end, max(first, wanted))
            reader.remove([key])
            reader.add({key: start})
            self._given[key] = min(start, self._given[key])

    def _notice_missing(self, there: set[tuple[str, int]]) -> None:
        """Raises KafkaReadError for a partition that was missing twice: a broker that just started may not know all."""
        missing = set(self._given) - there
        gone = sorted(missing & self._missing)
        if gone:
            raise KafkaReadError(f"{gone[0][0]}[{gone[0][1]}] does not exist any more; was the topic deleted?")
        self._missing = missing

    def _take_over(self, reader: PartitionReader, topic: str, now: KafkaTopic) -> None:
        """Reads the topic's partitions that are this split's and that it does not read yet."""
        for number in now.partitions:
            if number % self._settings.splits != self._settings.index or (topic, number) in self._given:
                continue
            extent = reader.extent(topic, number, _METADATA_SECONDS)
            if extent is None:  # it has no leader yet; the next call finds it again
                continue
            start = {(topic, number): extent[0]}
            reader.add(start)
            self._watermarks.add(start)
            self._aligner.add(start)
            self._given |= start
            self._begin |= start

    def _floors(self, partitions: Iterable[Partition]) -> Positions:
        """{partition: what may be committed}, of those of which it is known."""
        assert self._progress is not None
        floors = {}
        for topic, partition in partitions:
            floor = self._progress.floor(source_partition(self._sources.get(topic, 0), partition))
            if floor is not None:
                floors[topic, partition] = floor
        return floors

    def get_current(self) -> pa.RecordBatch:
        return self._block

    def get_current_timestamp(self) -> Timestamp:
        return self._timestamp

    def get_watermark(self) -> Timestamp:
        return self._watermarks.value()

    def get_checkpoint_mark(self) -> KafkaMark:
        self._bundle_done = False
        positions, commits = dict(self._given), self._commits
        RESTING.put(self._source, positions, self)
        return KafkaMark(positions, self._sources, lambda: commits.reached(positions))

    def close(self) -> None:
        RESTING.remove(self._source, self._given, self)
        if self._reader is not None:
            self._commits.end()
            self._reader.close()
            self._reader = None
