"""The feed of records, which somebody has joined already: decodes them, runs the recipe, writes train blocks.

records -> decode -> recipe, train blocks (per feed shard, when the recipe has state) -> train topic or Parquet
             `-> dead letters
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.utils.windowed_value import WindowedValue

from millrace.pipelines.feed.fused_steps import FusedSteps
from millrace.pipelines.feed.machine import ComposedMachineFactory, pass_through
from millrace.pipelines.feed.options import FeedOptions, KafkaSettings, RecordFiles, RecordFormat
from millrace.pipelines.feed.read_plan import ReadPlan
from millrace.pipelines.feed.rows_stage import RowsStageFactory, TrainRowsStage
from millrace.pipelines.feed.shard_state import ShardStateDoFn
from millrace.pipelines.feed.sinks import Sinks
from millrace.pipelines.feed.source import DeadLetterWatch, decoded_rows, read_topics
from millrace.pipelines.files import sources as file_sources
from millrace.pipelines.files.decode import Decode, make_decoder
from millrace.pipelines.files.format import ROW_FORMATS, RecordSettings, file_framing
from millrace.runtime import telemetry
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.beam.dead_letters import DEAD_LETTERS, DeadLetters
from millrace.transforms.feed.shards import by_partition
from millrace.transforms.feed.spans import shard_pieces

_NAMESPACE = telemetry.namespace("pipelines", "record_feed")


def add_record_feed(pipeline: beam.Pipeline, options: FeedOptions, plan: ReadPlan, sinks: Sinks, feed_id: str) -> None:
    """Adds the whole feed of records to `pipeline`; see `millrace.pipelines.feed.graph.build_feed`.

    Args:
      feed_id: as of `millrace.pipelines.feed.shard_state.ShardStateDoFn`. A streaming feed has that step though its
        recipe may have no state: it sets the pace of the readers, and knows the floors.
    """
    stage = RowsStageFactory(options.config, options.recipe, joined=False)
    rows = _read(pipeline, options, plan, feed_id, stage.required_features, sinks.dead_letters)
    if options.streaming:
        run: beam.PTransform = beam.ParDo(
            ShardStateDoFn(
                ComposedMachineFactory(pass_through, stage),
                _NAMESPACE,
                options.tuning.timer_seconds,
                sinks.rows,
                feed_id=feed_id,
                in_memory=options.in_one_process,
                shards=options.tuning.join_shards,
                floors=True,
            )
        )
    elif stage.stateful:
        run = _RunGrouped(FusedSteps(_GroupedStageDoFn(stage), sinks.rows))
    else:
        run = beam.ParDo(FusedSteps(_StageDoFn(stage), sinks.rows))
    _ = rows | "RecipeAndWrite" >> run


def _read(
    pipeline: beam.Pipeline,
    options: FeedOptions,
    plan: ReadPlan,
    feed_id: str,
    features: Collection[str] | None,
    dead_letters: beam.DoFn,
) -> beam.PCollection[tuple[int, pa.RecordBatch]]:
    """Returns (feed shard, rows); dead letters go to `dead_letters`.

    Args:
      features: the features that are used later: a source may leave out all others; None: it reads all.
    """
    source = options.source
    if isinstance(source, KafkaSettings):
        assert source.records is not None
        raw = pipeline | "ReadRecords" >> read_topics(options, plan, feed_id)
        decode = _decode(source.records[1], options)
        return decoded_rows(raw, "DecodeRecords", decode, dead_letters, options.streaming)
    assert isinstance(source, RecordFiles)
    read = pipeline | "ReadFiles" >> _file_source(source, features)
    if source.format.name in ROW_FORMATS:
        rows = read["rows"] | "ToShards" >> beam.ParDo(_ToShardDoFn(options.tuning.join_shards)).with_output_types(
            _SHARDED
        )
    else:
        decode = _decode(replace(source.format, frames=None), options)
        rows = decoded_rows(read["rows"], "DecodeRecords", decode, dead_letters, False)
    _ = read[file_sources.DEAD_LETTERS] | "WriteDeadLettersOfFiles" >> beam.ParDo(dead_letters)
    return rows


_SHARDED = tuple[int, pa.RecordBatch]


def _decode(format: RecordFormat, options: FeedOptions) -> "_DecodeRecordsDoFn":
    return _DecodeRecordsDoFn(format, options.tuning.join_shards, options.tuning.max_drop_ratio)


def _file_source(source: RecordFiles, features: Collection[str] | None) -> beam.PTransform:
    format = source.format
    framing = file_framing(source.pattern, format.name, format.frames)
    return file_sources.read_files(source.pattern, format.name, framing, "--record-files", source.first_file, features)


class _DecodeRecordsDoFn(beam.DoFn):
    """Raw blocks to (feed shard, rows) and dead letters; fails when most of a partition is unreadable.

    Counters: `record_rows`, `dead_letters_<reason>`.
    """

    def __init__(self, format: RecordFormat, shards: int, max_drop_ratio: float) -> None:
        self._format, self._shards = format, shards
        self._decode: Decode | None = None
        self._watch = DeadLetterWatch(_NAMESPACE, max_drop_ratio)
        self._rows = Metrics.counter(_NAMESPACE, "record_rows")

    def setup(self) -> None:
        settings = RecordSettings(self._format.name, tf_example=self._format.tf_example)
        self._decode = make_decoder(settings, self._format.frames)

    def start_bundle(self) -> None:
        self._watch.start_bundle()

    def process(self, block: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch] | DeadLetters]:
        assert self._decode is not None
        rows, dead = self._decode(block)
        self._watch.observe(block, dead)
        self._rows.inc(rows.num_rows)
        yield from shard_pieces(by_partition(rows, self._shards), rows, block, self._shards)
        if dead.num_rows:
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, dead)

    def finish_bundle(self) -> None:
        self._watch.publish()


class _ToShardDoFn(beam.DoFn):
    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process(self, rows: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield from by_partition(rows, self._shards)


class _StageDoFn(beam.DoFn):
    """(feed shard, rows) to (feed shard, train rows), by a recipe without state."""

    def __init__(self, factory: RowsStageFactory) -> None:
        self._factory = factory
        self._stage: TrainRowsStage | None = None

    def setup(self) -> None:
        self._stage = self._factory()

    def process(self, element: tuple[int, pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
        assert self._stage is not None
        rows = self._stage.process(element[1])
        if rows.num_rows:
            yield element[0], rows

    def finish_bundle(self) -> Iterable[WindowedValue]:
        assert self._stage is not None
        self._stage.publish()
        return ()


class _RunGrouped(beam.PTransform):
    """Groups all rows of a feed shard, and runs `run` on each group."""

    def __init__(self, run: FusedSteps) -> None:
        super().__init__()
        self._run = run

    def expand(self, rows: beam.PCollection[tuple[int, pa.RecordBatch]]) -> beam.PCollection[Any]:
        return rows | "GroupShards" >> beam.GroupByKey() | "RunStage" >> beam.ParDo(self._run)


class _GroupedStageDoFn(beam.DoFn):
    """(feed shard, all its rows) to (feed shard, train rows), by one stage in the order of the rows' provenance."""

    def __init__(self, factory: RowsStageFactory) -> None:
        self._factory = factory

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        stage = self._factory()
        batches = sorted(element[1], key=_first_source)
        stage.warm(batches)
        for batch in batches:
            rows = stage.process(batch)
            if rows.num_rows:
                yield element[0], rows
        stage.publish()

    def finish_bundle(self) -> Iterable[WindowedValue]:
        return ()


def _first_source(batch: pa.RecordBatch) -> tuple[int, int]:
    partition, offset, _ = provenance_of(batch.slice(0, 1))
    return int(partition[0]), int(offset[0])
