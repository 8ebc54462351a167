"""Reads the topics or the event files of a feed, and watches how many records are unreadable."""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.pipelines.feed.read_plan import ReadPlan
from millrace.pipelines.files.sources import DEAD_LETTERS, ReadJsonLines
from millrace.pipelines.kafka.source import ReadFromKafka
from millrace.runtime import telemetry
from millrace.transforms.batch import dead_letter
from millrace.transforms.beam.dead_letters import count_dead_letters
from millrace.transforms.feed.drop_guard import DropRatioGuard

_DEAD = telemetry.counter("feed_dead_letters", "Records that could not be read.", ("reason",))


def read_topics(options: FeedOptions, plan: ReadPlan, feed_id: str | None) -> beam.PTransform:
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
        commit_delay_seconds=plan.commit_delay_seconds,
        feed_id=feed_id,
    )


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
    """

    def __init__(self, namespace: str, max_drop_ratio: float) -> None:
        self._namespace, self._guard = namespace, DropRatioGuard(max_drop_ratio)

    def observe(self, block: pa.RecordBatch, dead: pa.RecordBatch) -> None:
        """Takes a raw block and its dead letters; raises TooManyDeadLettersError."""
        self._guard.observe(block, dead)
        count_dead_letters(self._namespace, dead)
        for reason, count in dead_letter.count_by_reason(dead).items():
            _DEAD.labels(reason).inc(count)
