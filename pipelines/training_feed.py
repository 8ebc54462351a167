"""The training feed: events in, training batches out; one graph, streaming or bounded by choice of source.

impressions, actions -> decode -> shard by request -> join -> fids, labels, sampling -> shard by user -> train topic
                           `-> dead letters                                                         `-> or Parquet
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from pipelines.chain import Chain
from pipelines.file_io import ReadEventFiles, WriteParquetDoFn
from pipelines.join_events import JoinEvents, split_by_shard
from pipelines.kafka_io import KafkaRecord, ReadFromKafka, WriteToKafkaDoFn
from pipelines.options import FeedOptions, FileSettings, KafkaSettings
from pipelines.read_plan import ReadPlan
from runtime import telemetry
from runtime.topics import Topics
from transforms import dead_letter, fid_sharding, record_batch
from transforms.event_codec import decode_actions, decode_impressions
from transforms.feature_list import FeedConfig
from transforms.sampling import positive_rows
from transforms.train_rows import rows_to_train_batch

__all__ = ["build_feed"]

_NAMESPACE = telemetry.namespace("pipelines", "training_feed")
_DEAD_LETTERS = "dead_letters"
_DeadLetters: TypeAlias = beam.pvalue.TaggedOutput[Literal["dead_letters"], pa.RecordBatch]
_DEAD = telemetry.counter("feed_dead_letters", "Records that could not be read.", ("reason",))
_EMITTED = telemetry.counter("feed_rows_emitted", "Rows of train blocks.", ("label",))
_DROPPED = telemetry.counter("feed_rows_dropped", "Rows that no train block holds.", ("reason",))

_CONTENT_TYPE = (("content-type", record_batch.CONTENT_TYPE.encode("ascii")),)
# A block is worth its overhead from some hundred rows on; a bundle with more rows than this gives several blocks.
_BUNDLE_ROWS = 20_000


def build_feed(pipeline: beam.Pipeline, options: FeedOptions, plan: ReadPlan) -> None:
    """Adds the whole feed to `pipeline`; `plan` says where to read (`pipelines.read_plan.plan_reads`)."""
    decode = beam.ParDo(_DecodeDoFn(options.config, plan.topics, options.tuning.join_shards))
    decode = decode.with_output_types(tuple[int, pa.RecordBatch]).with_outputs(_DEAD_LETTERS, main="rows")
    decoded = _read(pipeline, options, plan) | "DecodeEvents" >> decode
    write, bury = _write_topics(options, plan) if options.parquet is None else _write_files(options, options.parquet)
    join = JoinEvents(options.config, options.streaming, options.tuning.timer_seconds, then=write)
    _ = decoded.rows | "JoinAndWrite" >> join
    _ = decoded[_DEAD_LETTERS] | "WriteDeadLetters" >> beam.ParDo(bury)


def _write_topics(options: FeedOptions, plan: ReadPlan) -> tuple[Chain, Chain]:
    """(what writes joined rows, what writes dead letters)."""
    if not isinstance(options.source, KafkaSettings):
        raise TypeError(f"a feed to topics reads topics, got {options.source!r}")
    connection, train = options.source.connection, plan.topics.train(options.config.model)
    return (
        Chain(_TrainBlocksDoFn(options.config, plan.feed_shards), WriteToKafkaDoFn(connection, train)),
        Chain(_DeadLetterRecordsDoFn(), WriteToKafkaDoFn(connection, plan.topics.dead_letter)),
    )


def _write_files(options: FeedOptions, folder: Path) -> tuple[Chain, Chain]:
    return (
        Chain(_TrainFilesDoFn(options.config, options.tuning.join_shards), WriteParquetDoFn(folder)),
        Chain(_NameDeadLettersDoFn(), WriteParquetDoFn(folder / "dead-letters")),
    )


def _read(pipeline: beam.Pipeline, options: FeedOptions, plan: ReadPlan) -> beam.PCollection[pa.RecordBatch]:
    source = options.source
    if isinstance(source, FileSettings):
        impressions = pipeline | "ReadImpressions" >> ReadEventFiles(
            source.impressions, plan.topics.impressions, "--impression-files"
        )
        actions = pipeline | "ReadActions" >> ReadEventFiles(source.actions, plan.topics.actions, "--action-files")
        return (impressions, actions) | "BothKinds" >> beam.Flatten()
    return pipeline | "ReadEvents" >> ReadFromKafka(
        source.connection,
        plan.start,
        plan.end,
        group_id=source.group,
        splits=options.tuning.splits,
        poll_seconds=options.tuning.poll_seconds,
        commit_delay_seconds=plan.commit_delay_seconds,
    )


class _DecodeDoFn(beam.DoFn):
    """Raw blocks of either topic to (join shard, rows) and dead letters.

    One step for both topics: two would need a Flatten, which costs Prism a bundle of its own.

    Counters: `impression_rows`, `actions`, `dead_letters_<reason>`.
    """

    def __init__(self, config: FeedConfig, topics: Topics, shards: int, clock: Callable[[], float] = time.time) -> None:
        self._context_fields, self._topics, self._shards, self._clock = config.context_fields(), topics, shards, clock
        self._rows = Metrics.counter(_NAMESPACE, "impression_rows")
        self._actions = Metrics.counter(_NAMESPACE, "actions")

    def process(self, block: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch] | _DeadLetters]:
        now_ms = int(self._clock() * 1000)
        if record_batch.raw_topic(block) == self._topics.actions:
            rows, dead = decode_actions(block, now_ms)
            self._actions.inc(rows.num_rows)
        else:
            rows, dead = decode_impressions(block, self._context_fields, now_ms)
            self._rows.inc(rows.num_rows)
        if rows.num_rows:
            yield from split_by_shard(rows, self._shards)
        if dead.num_rows:
            for reason, count in dead_letter.count_by_reason(dead).items():
                Metrics.counter(_NAMESPACE, f"dead_letters_{reason}").inc(count)
                _DEAD.labels(reason).inc(count)
            yield beam.pvalue.TaggedOutput(_DEAD_LETTERS, dead)


class _DeadLetterRecordsDoFn(beam.DoFn):
    def process(self, dead: pa.RecordBatch) -> Iterator[KafkaRecord]:
        headers = dead_letter.kafka_headers(dead)
        for value, header in zip(dead.column("value").to_pylist(), headers, strict=True):
            yield KafkaRecord(value, headers=tuple(header))


class _NameDeadLettersDoFn(beam.DoFn):
    """Dead letters to (file name, dead letters): named after the first, so a retried bundle names them alike."""

    def process(self, dead: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        topic, partition, offset = (dead.column(name)[0].as_py() for name in ("topic", "partition", "offset"))
        yield f"{topic}-{partition:05d}-{offset:012d}", dead


class _TrainRows:
    """Joined rows to train rows, counted.

    Counters: `rows_emitted_positive`, `rows_emitted_negative`, `rows_dropped_negative_sampling`.
    """

    def __init__(self, config: FeedConfig) -> None:
        self._config = config

    def make(self, joined: pa.RecordBatch) -> pa.RecordBatch:
        batch, dropped = rows_to_train_batch(joined, self._config)
        positives = int(positive_rows(batch.column(record_batch.LABEL)).sum())
        for label, count in (("positive", positives), ("negative", batch.num_rows - positives)):
            Metrics.counter(_NAMESPACE, f"rows_emitted_{label}").inc(count)
            _EMITTED.labels(label).inc(count)
        Metrics.counter(_NAMESPACE, "rows_dropped_negative_sampling").inc(dropped)
        _DROPPED.labels("negative_sampling").inc(dropped)
        return batch


class _TrainBlocksDoFn(beam.DoFn):
    """(join shard, joined rows) to train blocks, one per bundle and feed shard where they are not too large."""

    def __init__(self, config: FeedConfig, feed_shards: int) -> None:
        self._feed_shards = feed_shards
        self._user_slot = fid_sharding.user_slot(config)
        self._rows = _TrainRows(config)

    def start_bundle(self) -> None:
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0

    def process(self, element: tuple[int, pa.RecordBatch]) -> Iterator[KafkaRecord]:
        self._held.append(element[1])
        self._held_rows += element[1].num_rows
        if self._held_rows >= _BUNDLE_ROWS:
            yield from self._take()

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        for record in self._take():
            yield GlobalWindows.windowed_value(record)

    def _take(self) -> Iterator[KafkaRecord]:
        if not self._held:
            return
        batch = self._rows.make(record_batch.concat(self._held))
        self._held, self._held_rows = [], 0
        shards = fid_sharding.split_by_shard(batch, self._feed_shards, self._user_slot)
        for shard, rows in shards.items():
            for _, data in record_batch.encode_blocks(rows):
                yield KafkaRecord(data, str(shard).encode("ascii"), shard, _CONTENT_TYPE)


class _TrainFilesDoFn(beam.DoFn):
    """(join shard, all its joined rows) to (file name, train rows)."""

    def __init__(self, config: FeedConfig, shards: int) -> None:
        self._shards = shards
        self._rows = _TrainRows(config)

    def process(self, element: tuple[int, pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
        yield f"part-{element[0]:05d}-of-{self._shards:05d}", self._rows.make(element[1])
