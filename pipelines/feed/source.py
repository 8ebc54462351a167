"""Reads the topics or the event files of a feed, and watches how many records are unreadable."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from millrace.pipelines.feed.fused_steps import WithSide
from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.pipelines.feed.read_plan import ReadPlan
from millrace.pipelines.files.sources import DEAD_LETTERS, ReadJsonLines
from millrace.pipelines.kafka.source import ReadFromKafka
from millrace.runtime import telemetry
from millrace.transforms.batch import dead_letter
from millrace.transforms.feed.drop_guard import DropRatioGuard

_DEAD = telemetry.counter("feed_dead_letters", "Records that could not be read.", ("reason",))


def read_topics(options: FeedOptions, plan: ReadPlan, feed_id: str) -> beam.PTransform:
    """Reads the topics of a feed as `plan` says; `feed_id` as of `ReadFromKafka`."""
    source, tuning = options.source, options.tuning
    if not isinstance(source, KafkaSettings):
        raise TypeError(f"source must be Kafka topics, got {source!r}")
    return ReadFromKafka(
        source.connection,
        plan.start,
        plan.end,
        group_id=source.group,
        splits=tuning.splits,
        poll_seconds=tuning.poll_seconds,
        feed_id=feed_id,
        paced=options.in_one_process,
        sources=plan.sources,
    )


def decoded_rows(
    blocks: beam.PCollection[pa.RecordBatch], label: str, decode: beam.DoFn, dead_letters: beam.DoFn, streaming: bool
) -> beam.PCollection[tuple[int, pa.RecordBatch]]:
    """(feed shard, rows) that `decode` makes of raw blocks; its dead letters go to `dead_letters`.

    In a streaming feed they go there in the same step: rows arrive only when the dead letters of their block are
    acknowledged, so that an offset is not committed before.
    """
    if streaming:
        step = beam.ParDo(WithSide(decode, DEAD_LETTERS, dead_letters))
        return blocks | label >> step.with_output_types(tuple[int, pa.RecordBatch])
    outputs = beam.ParDo(decode).with_output_types(tuple[int, pa.RecordBatch]).with_outputs(DEAD_LETTERS, main="rows")
    found = blocks | label >> outputs
    _ = found[DEAD_LETTERS] | "WriteDeadLetters" >> beam.ParDo(dead_letters)
    return found.rows


class ReadEventFiles(beam.PTransform):
    """JSON-lines files to raw blocks (`raw_block.raw_schema`): partition = number of the file, offset = line number.

    A file that cannot be read to its end fails the run, since no event may be missing without notice.

    Args:
      pattern: of paths (`millrace.pipelines.files.patterns`); the end of a name tells its compression.
      topic: the topic whose events these are.
      field_name: setting that an error names.
      first_file: number of the first file.

    Raises: UserError when no file matches.
    """

    def __init__(self, pattern: str | Sequence[str], topic: str, field_name: str, first_file: int = 0) -> None:
        super().__init__()
        self._read = ReadJsonLines(pattern, topic=topic, field=field_name, first_file=first_file)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch]:
        read = begin | "ReadLines" >> self._read
        _ = read[DEAD_LETTERS] | "RefuseDamage" >> beam.ParDo(_RefuseDoFn())
        return read["rows"]

    def display_data(self) -> dict[str, Any]:
        return self._read.display_data()


class _RefuseDoFn(beam.DoFn):
    def process(self, dead: pa.RecordBatch) -> None:
        raise ValueError(f"a file is damaged: {dead.column('detail')[0].as_py()}")


class DeadLetterWatch:
    """Counts the dead letters of a feed by reason, and fails when most of a partition is unreadable.

    Args:
      namespace: metric namespace of the Beam counters `dead_letters_<reason>`.
      max_drop_ratio: as of `DropRatioGuard`.

    The counts of a bundle are published when it ends, so that one that is retried counts once.
    """

    def __init__(self, namespace: str, max_drop_ratio: float) -> None:
        self._namespace, self._guard = namespace, DropRatioGuard(max_drop_ratio)
        self._counts: Counter[str] = Counter()

    def start_bundle(self) -> None:
        """Drops the counts of a bundle that failed."""
        self._counts.clear()

    def observe(self, block: pa.RecordBatch, dead: pa.RecordBatch) -> None:
        """Takes a raw block and its dead letters; raises TooManyDeadLettersError."""
        self._guard.observe(block, dead)
        self._counts.update(dead_letter.count_by_reason(dead))

    def publish(self) -> None:
        """Passes the counts of this bundle on to Beam's metrics and to `/metrics` of this process."""
        for reason, count in self._counts.items():
            Metrics.counter(self._namespace, f"dead_letters_{reason}").inc(count)
            _DEAD.labels(reason).inc(count)
        self._counts.clear()
