"""The feed of events: joins impressions and actions to train blocks; one graph, unbounded or bounded by its source.

impressions, actions -> decode -> shard by request -> join -> fids, labels, sampling -> shard by user -> train topic
                           `-> dead letters                                                         `-> or Parquet
"""

import time
from collections.abc import Callable, Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from millrace.pipelines.feed.join import ROUTED_ACTIONS, JoinEvents
from millrace.pipelines.feed.options import FeedOptions, FileSettings, Tuning
from millrace.pipelines.feed.read_plan import ReadPlan
from millrace.pipelines.feed.rows_stage import RowsStageFactory
from millrace.pipelines.feed.sinks import Sinks
from millrace.pipelines.feed.source import DeadLetterWatch, ReadEventFiles, decoded_rows, read_topics
from millrace.runtime import telemetry
from millrace.runtime.topics import Topics
from millrace.transforms.batch.raw_block import raw_topic
from millrace.transforms.beam.dead_letters import DEAD_LETTERS, DeadLetters
from millrace.transforms.feed.config import FeedConfig
from millrace.transforms.feed.events import decode_actions, decode_impressions
from millrace.transforms.feed.shards import by_request
from millrace.transforms.feed.spans import shard_pieces

__all__ = ["add_event_feed"]

_NAMESPACE = telemetry.namespace("pipelines", "training_feed")


def add_event_feed(pipeline: beam.Pipeline, options: FeedOptions, plan: ReadPlan, sinks: Sinks, feed_id: str) -> None:
    """Adds the whole feed of events to `pipeline`; see `millrace.pipelines.feed.graph.build_feed`.

    Args:
      feed_id: as of `millrace.pipelines.feed.shard_state.ShardStateDoFn`.
    """
    decode = _DecodeDoFn(options.config, plan.topics, options.tuning)
    blocks = _read(pipeline, options, plan, feed_id)
    rows = decoded_rows(blocks, "DecodeEvents", decode, sinks.dead_letters, options.streaming)
    tuning = options.tuning
    join = JoinEvents(
        options.config,
        options.streaming,
        tuning.timer_seconds,
        then=sinks.rows,
        rows_stage=RowsStageFactory(options.config, options.recipe),
        max_pending_rows=tuning.max_pending_rows,
        spill_folder=tuning.spill_folder,
        feed_id=feed_id,
        in_memory=options.in_one_process,
        shards=tuning.join_shards,
        routed=sinks.routed_actions if options.streaming else None,
        floors=options.streaming,
    )
    joined = rows | "JoinAndWrite" >> join
    if not options.streaming:
        _ = joined[ROUTED_ACTIONS] | "WriteRoutedActions" >> beam.ParDo(sinks.routed_actions)


def _read(
    pipeline: beam.Pipeline, options: FeedOptions, plan: ReadPlan, feed_id: str
) -> beam.PCollection[pa.RecordBatch]:
    source = options.source
    if isinstance(source, FileSettings):
        impressions = pipeline | "ReadImpressions" >> ReadEventFiles(
            source.impressions, plan.topics.impressions, "--impression-files", source.first_file
        )
        actions = pipeline | "ReadActions" >> ReadEventFiles(source.actions, plan.topics.actions, "--action-files")
        return (impressions, actions) | "BothKinds" >> beam.Flatten()
    return pipeline | "ReadEvents" >> read_topics(options, plan, feed_id)


class _DecodeDoFn(beam.DoFn):
    """Raw blocks of either topic to (feed shard, rows) and dead letters; fails when most of a partition is unreadable.

    It is one step for both topics, since two would need a Flatten, which costs a bundle of its own on Prism.

    Counters: `impression_rows`, `actions`, `dead_letters_<reason>`.
    """

    def __init__(
        self, config: FeedConfig, topics: Topics, tuning: Tuning, clock: Callable[[], float] = time.time
    ) -> None:
        self._context_fields, self._topics, self._clock = config.context_fields(), topics, clock
        self._shards = tuning.join_shards
        self._watch = DeadLetterWatch(_NAMESPACE, tuning.max_drop_ratio)
        self._rows = Metrics.counter(_NAMESPACE, "impression_rows")
        self._actions = Metrics.counter(_NAMESPACE, "actions")

    def start_bundle(self) -> None:
        self._watch.start_bundle()

    def process(self, block: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch] | DeadLetters]:
        now_ms = int(self._clock() * 1000)
        if raw_topic(block) == self._topics.actions:
            rows, dead = decode_actions(block, now_ms)
            self._actions.inc(rows.num_rows)
        else:
            rows, dead = decode_impressions(block, self._context_fields, now_ms)
            self._rows.inc(rows.num_rows)
        self._watch.observe(block, dead)
        yield from shard_pieces(by_request(rows, self._shards), rows, block, self._shards)
        if dead.num_rows:
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, dead)

    def finish_bundle(self) -> None:
        self._watch.publish()
