"""ReadFromKafka: a Kafka source in Python on confluent-kafka; no Java expansion service runs.

An element is a raw block (schema: `transforms.batch.raw_block.raw_schema`) of up to `max_records` records of one
topic, never a single record.

Unbounded, it is Beam's `UnboundedSource`. A split reads a set of partitions, of several topics if need be, because each
split costs a bundle per poll. Its checkpoint mark holds the next offset of each partition, and a runner with durable
state (Flink, Dataflow) resumes from it. When a bundle is final, offsets are also committed to a consumer group: for
monitoring, and for runners whose state dies with them. They are those below which nothing is held
(`millrace.pipelines.kafka.commits`), so that a feed that starts from the group reads again what a stateful step may
have held in memory. Nothing joins the group, so nothing is ever rebalanced.

Bounded, it reads ranges of offsets that are fixed at construction.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import (
    CheckpointMark,
    ReadFromUnboundedSource,
    UnboundedReader,
    UnboundedSource,
)
from apache_beam.transforms.display import DisplayDataItem

from millrace.pipelines.kafka.align import DEFAULT_ALIGN_MS
from millrace.pipelines.kafka.process import RESTING
from millrace.pipelines.kafka.ranges import ReadRangesDoFn, cut_ranges
from millrace.pipelines.kafka.reader import KafkaBlockReader, KafkaMark, KafkaMarkCoder, ReaderSettings
from millrace.pipelines.kafka.topic_sources import commit_tag, note_lost, topic_sources
from millrace.pipelines.kafka.watermark import POLICIES, TimestampPolicy
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.kafka_positions import Positions, resolve_topics
from millrace.runtime.kafka_records import PartitionReader
from millrace.transforms.beam import coder

__all__ = ["KafkaSource", "ReadFromKafka"]

# From a few hundred records on, the cost of a block is that of its records; a larger one only takes longer to fill.
DEFAULT_MAX_RECORDS = 2000
# An idle split is asked again after this long. The runner waits meanwhile, no worker thread does.
DEFAULT_POLL_SECONDS = 0.1
# A new partition is noticed after this long at most; its records stay in Kafka until then.
DEFAULT_METADATA_SECONDS = 10.0
# A busy split ends its bundle after this many blocks, so that later steps and commits see them soon.
_BLOCKS_PER_BUNDLE = 4


class ReadFromKafka(beam.PTransform):
    """Reads topics as raw blocks, each of one topic; `of_topics` takes positions in words.

    Args:
      connection: brokers and client settings.
      start: {(topic, partition): first offset}.
      end: {(topic, partition): offset after the last}; None reads on for ever.
      group_id: consumer group that progress is committed to; used when unbounded.
      splits: readers that share the partitions, by partition number modulo splits; more than one is faster only when
        a single reader is the bottleneck.
      max_records: records per block at most.
      poll_seconds: how long an idle split waits before it asks again.
      timestamp_policy: whose clock time stamps and watermark follow: `record_time` (the producer's), `log_append_time`
        (the broker's; the topic must keep it) or `processing_time`.
      metadata_seconds: how often an unbounded read looks for partitions of its topics that `start` does not name; it
        reads them from their first offset on. None: it reads only what `start` names.
      feed_id: of the feed whose stateful step tells which offsets may be committed (`pipelines.kafka.commits`); as long
        as that step does not run in the reader's process, none are. None: what is final is committed.
      paced: whether that step sets the pace too (`millrace.pipelines.kafka.pace`), for runners that hold any number of
        elements. Time stamps are then processing times.
      sources: {topic: number of the source that `start` belongs to} (`transforms.batch.provenance`). A topic that is
        another one when it is read is read from its beginning. None: `start` is taken for what is there when the read
        begins.
      align_ms: an unbounded read gives no record that is more than so many ms ahead, by time stamp, of a partition of
        its split that has more to read. A feed that catches up then sees events nearly in the order in which they
        happened. No record waits for a partition at its end, nor for one that has given nothing for 5 s
        (`silent_partitions` counts those).

    Counters (`millrace.pipelines.kafka_io`): `records_read`, `bytes_read`, `blocks_read`, `silent_partitions`; gauge
    `lag_records`, per split. On `/metrics`: `millrace_feed_records_read_total{topic}`,
    `millrace_feed_lag_records{topic,partition}`, `millrace_feed_silent_partitions_total{topic}`,
    `millrace_feed_records_lost_total{topic,partition}`, `millrace_feed_topics_made_anew_total{topic}`.

    Raises, while it runs:
      KafkaReadError: an offset or a partition does not exist any more, or the topic has no append times.

    Example:
      >>> read = ReadFromKafka.of_topics(KafkaConnection(address), [topic], start="earliest", until="end")
      >>> with beam.Pipeline() as pipeline:
      ...     values = pipeline | read | beam.FlatMap(lambda block: block.column("value").to_pylist())
      ...     _ = assert_that(values, equal_to([b"first", b"second"]))
    """

    def __init__(
        self,
        connection: KafkaConnection,
        start: Mapping[tuple[str, int], int],
        end: Mapping[tuple[str, int], int] | None = None,
        group_id: str = "millrace",
        splits: int = 1,
        max_records: int = DEFAULT_MAX_RECORDS,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        timestamp_policy: TimestampPolicy = "record_time",
        metadata_seconds: float | None = DEFAULT_METADATA_SECONDS,
        feed_id: str | None = None,
        paced: bool = False,
        sources: Mapping[str, int] | None = None,
        align_ms: int = DEFAULT_ALIGN_MS,
    ) -> None:
        super().__init__()
        if not start:
            raise ValueError("start must name at least one partition, got {}")
        if splits < 1 or max_records < 1 or poll_seconds <= 0:
            raise ValueError(f"out of range: {splits=}, {max_records=}, {poll_seconds=}")
        if metadata_seconds is not None and metadata_seconds <= 0:
            raise ValueError(f"out of range: {metadata_seconds=}")
        if align_ms < 0:
            raise ValueError(f"out of range: {align_ms=}")
        if timestamp_policy not in POLICIES:
            raise UserError("timestamp_policy", timestamp_policy, "unknown", f"choose {', '.join(POLICIES)}")
        if end is not None and set(end) != set(start):
            raise ValueError(f"end must name the same partitions as start, got {end!r} and {start!r}")
        self._connection, self._start, self._end = connection, dict(start), end
        self._group_id, self._splits, self._poll_seconds = group_id, splits, poll_seconds
        self._sources = tuple(sorted((sources or {}).items()))
        policy = "processing_time" if paced else timestamp_policy
        self._settings = ReaderSettings(max_records, policy, metadata_seconds, feed_id, paced, align_ms)

    @classmethod
    def of_topics(
        cls,
        connection: KafkaConnection,
        topics: Collection[str],
        start: str = "group",
        until: str | None = None,
        group_id: str = "millrace",
        **settings: Any,
    ) -> "ReadFromKafka":
        """Asks the brokers, now, which offsets `start` and `until` mean.

        Args:
          start: earliest, latest, group, time:MILLISECONDS, or JSON {partition: offset}.
          until: None reads on for ever; `end` means the ends as they are now; time: and JSON as in `start`.
          settings: the other arguments of the constructor.

        Raises:
          UserError: a topic does not exist, or a position is wrong.
        """
        sources = topic_sources(connection, topics)
        tags = {topic: commit_tag(number) for topic, number in sources.items()}
        first = resolve_topics(connection, topics, start, group_id, "start", tags, note_lost)
        last = None
        if until is not None:
            last = resolve_topics(connection, topics, "latest" if until == "end" else until, group_id, "until")
            last = {key: max(offset, first[key]) for key, offset in last.items()}
        return cls(connection, first, last, group_id, sources=sources, **settings)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch]:
        if self._end is None:
            source = KafkaSource(
                self._connection,
                tuple(sorted(self._start.items())),
                self._group_id,
                replace(self._settings, splits=self._splits),
                sources=self._sources,
            )
            return begin | "ReadUnbounded" >> ReadFromUnboundedSource(
                source, poll_interval=self._poll_seconds, max_records_per_bundle=_BLOCKS_PER_BUNDLE
            )
        return (
            begin
            | "ListRanges" >> beam.Create(list(cut_ranges(self._start, self._end)))
            | "SpreadRanges" >> beam.Reshuffle()
            | "ReadRanges" >> beam.ParDo(ReadRangesDoFn(self._connection, self._settings.max_records))
        )

    def display_data(self) -> dict[str, Any]:
        return {
            "brokers": DisplayDataItem(self._connection.bootstrap_servers, label="Kafka brokers"),
            "topics": DisplayDataItem(", ".join(sorted({topic for topic, _ in self._start})), label="Topics"),
            "group": DisplayDataItem(self._group_id, label="Consumer group of committed offsets"),
            "bounded": DisplayDataItem(self._end is not None, label="Ends at fixed offsets"),
            "timestamp_policy": DisplayDataItem(self._settings.timestamp_policy, label="Time stamps"),
            "splits": DisplayDataItem(self._splits, label="Readers"),
        }


@dataclass(frozen=True)
class KafkaSource(UnboundedSource):
    """Partitions from fixed offsets on; see `ReadFromKafka` for the arguments.

    Sources with equal settings compare equal: Beam pickles one per bundle, and caches the result by value.

    Attributes:
      topics: topics whose new partitions are read too; default: those of `start`. A split without any partition of a
        topic names it here.
      sources: (topic, number of the source that the offsets in `start` belong to), as far as it is known.
    """

    connection: KafkaConnection
    start: tuple[tuple[tuple[str, int], int], ...]
    group_id: str
    settings: ReaderSettings
    topics: tuple[str, ...] = ()
    sources: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.topics:
            object.__setattr__(self, "topics", tuple(sorted({topic for (topic, _), _ in self.start})))

    def split(self, desired_num_splits: int, options: Any = None) -> list[UnboundedSource]:
        count = min(self.settings.splits, desired_num_splits)
        return [
            replace(
                self,
                start=tuple(each for each in self.start if each[0][1] % count == index),
                settings=replace(self.settings, splits=count, index=index),
            )
            for index in range(count)
        ]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> UnboundedReader:
        start, sources = dict(self.start), dict(self.sources)
        if isinstance(checkpoint_mark, KafkaMark):
            start, sources = checkpoint_mark.positions, checkpoint_mark.sources or sources
        rested = RESTING.take(self, start)
        if rested is not None:
            return rested.successor()

        def open_at(positions: Positions) -> PartitionReader:
            return PartitionReader(self.connection, positions, self.group_id)

        return KafkaBlockReader(open_at, start, self.settings, self.topics, self, sources=sources)

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        return KafkaMarkCoder()

    def default_output_coder(self) -> coders.Coder:
        return coder.RecordBatchCoder()
