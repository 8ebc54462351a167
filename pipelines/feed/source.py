"""What every feed does with its topics: reads them where the plan says, and watches what cannot be read."""

import apache_beam as beam
import pyarrow as pa

from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.pipelines.feed.read_plan import ReadPlan
from millrace.pipelines.kafka.source import ReadFromKafka
from millrace.runtime import telemetry
from millrace.transforms.batch import dead_letter
from millrace.transforms.beam.dead_letters import count_dead_letters
from millrace.transforms.feed.drop_guard import DropRatioGuard

_DEAD = telemetry.counter("feed_dead_letters", "Records that could not be read.", ("reason",))


def read_topics(options: FeedOptions, plan: ReadPlan, paced_by: str | None) -> beam.PTransform:
    """Reads the topics of a feed from Kafka, `paced_by` as of `ReadFromKafka`."""
    source, tuning = options.source, options.tuning
    if not isinstance(source, KafkaSettings):
        raise TypeError(f"topics are read from Kafka, got {source!r}")
    return ReadFromKafka(
        source.connection,
        plan.start,
        plan.end,
        group_id=source.group,
        splits=tuning.splits,
        poll_seconds=tuning.poll_seconds,
        commit_delay_seconds=plan.commit_delay_seconds,
        paced_by=paced_by,
    )


class DeadLetterWatch:
    """Counts a feed's dead letters by reason, and fails when most of a partition cannot be read.

    Args:
      namespace: of the Beam counters `dead_letters_<reason>`.
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
