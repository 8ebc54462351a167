"""Settings of a training feed, grouped by concern: plain dataclasses, checked at construction."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics
from millrace.transforms.feed.config import FeedConfig
from millrace.transforms.feed.drop_guard import DEFAULT_MAX_RATIO
from millrace.transforms.frames.framing import FrameOptions

if TYPE_CHECKING:
    from millrace.transforms.codecs.tf_example import TfExampleOptions

RUNNERS = ("prism", "flink", "direct", "dataflow")


@dataclass(frozen=True)
class Tuning:
    """Settings that trade latency and memory against processor time.

    Args:
      join_shards: feed shards of the join. Each costs a bundle per poll; more than one let a join use several cores.
      feed_shards: partitions of a train topic that the feed creates; an existing topic keeps its own number.
      splits: Kafka readers.
      poll_seconds: how long an idle reader waits before it asks again.
      timer_seconds: how often an idle join looks for impressions whose window has closed.
      max_pending_rows: most rows that a join shard holds in memory; older ones lie in files; None: no limit.
      spill_folder: folder of these files, on a local disk; None: the system's folder of temporary files.
      max_drop_ratio: the feed fails when a larger share of a partition's newest records cannot be read; 1: never.
    """

    join_shards: int = 1
    feed_shards: int = 4
    splits: int = 1
    poll_seconds: float = 0.1
    timer_seconds: float = 0.2
    max_drop_ratio: float = DEFAULT_MAX_RATIO
    max_pending_rows: int | None = None
    spill_folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("join_shards", "feed_shards", "splits"):
            if not 1 <= getattr(self, name) <= 1024:
                raise UserError(_flag(name), getattr(self, name), "out of range", "choose 1..1024")
        for name in ("poll_seconds", "timer_seconds"):
            if not 0.01 <= getattr(self, name) <= 60.0:
                raise UserError(_flag(name), getattr(self, name), "out of range", "choose 0.01..60")
        if self.max_pending_rows is not None and self.max_pending_rows < 1:
            raise UserError("--max-pending-rows", self.max_pending_rows, "out of range", "choose 1 or more")
        if not 0.0 < self.max_drop_ratio <= 1.0:
            raise UserError("--max-drop-ratio", self.max_drop_ratio, "out of range", "choose more than 0, at most 1")


@dataclass(frozen=True)
class RecordFormat:
    """The format of records.

    Args:
      name: one of `transforms.codecs.record_codec.FORMATS`, or `tf_example`; for files also the containers `parquet`,
        `avro` and `arrow`.
      frames: headers of the frames in a Kafka value or in a file. None: a Kafka value is one record, and the frames of
        a file have `FILE_FRAMES`.
      tf_example: what the features of a `tf.Example` become; needed for this format.
    """

    name: str
    frames: FrameOptions | None = None
    tf_example: "TfExampleOptions | None" = None


@dataclass(frozen=True)
class KafkaSettings:
    """Kafka topics that a feed reads, and to which its train blocks go.

    Args:
      start: earliest, latest, group, time:MILLISECONDS, or JSON {"impressions": {"0": 17}, "actions": {...}}.
      until: None reads on for ever; `end` stops at the ends as they are at the start; time: and JSON as in `start`.
      group: consumer group that offsets are committed to and that `start=group` begins from.
      records: (topic, format) of records that are read in place of events, and not joined; None: events.
    """

    connection: KafkaConnection
    topics: Topics = field(default_factory=Topics)
    start: str = "group"
    until: str | None = None
    group: str = "millrace-feed"
    records: tuple[str, RecordFormat] | None = None


@dataclass(frozen=True)
class FileSettings:
    """JSON-lines event files to read.

    Args:
      impressions, actions: patterns with wildcards and placeholders (`millrace.pipelines.files.patterns`).
      first_file: number of the first file of impressions, which is the partition of its rows.
    """

    impressions: str
    actions: str | tuple[str, ...]
    first_file: int = 0


@dataclass(frozen=True)
class RecordFiles:
    """Files of records.

    Args:
      pattern: with wildcards and placeholders (`millrace.pipelines.files.patterns`).
      first_file: number of the first file, which is the partition of its rows.
    """

    pattern: str
    format: RecordFormat
    first_file: int = 0


@dataclass(frozen=True)
class FeedOptions:
    """One feed.

    Args:
      config: features, labels, window and sampling.
      source: Kafka topics or files.
      parquet: folder for Parquet files in place of the train topic; for bounded feeds only.
      runner: one of `RUNNERS`.
      beam_flags: passed to Beam as they are; they replace the defaults of `millrace.pipelines.feed.runners`.
      work_folder: folder for logs and checkpoints of runners that this process starts.
      recipe: steps between labels and train blocks, a serialized `TransformConfig`.
    """

    config: FeedConfig
    source: KafkaSettings | FileSettings | RecordFiles
    parquet: Path | None = None
    runner: str = "prism"
    beam_flags: tuple[str, ...] = ()
    work_folder: Path = Path(".state/feed")
    tuning: Tuning = field(default_factory=Tuning)
    recipe: bytes = b""

    def __post_init__(self) -> None:
        if self.runner not in RUNNERS:
            raise UserError("--runner", self.runner, "unknown", f"choose {', '.join(RUNNERS)}")
        if self.streaming and self.runner == "direct":
            raise UserError(
                "--runner",
                self.runner,
                "Beam's Direct runner never fires a timer on an unbounded input",
                "use --runner prism or flink, or bound the feed with --until end",
            )
        if self.streaming and self.parquet is not None:
            raise UserError("--output-parquet", self.parquet, "the feed is unbounded", "add --until end or drop it")
        if isinstance(self.source, FileSettings) and self.parquet is None:
            raise UserError("--impression-files", self.source.impressions, "no output", "add --output-parquet DIR")
        if isinstance(self.source, RecordFiles) and self.parquet is None:
            raise UserError("--record-files", self.source.pattern, "no output", "add --output-parquet DIR")

    @property
    def reads_records(self) -> bool:
        """Whether rows are read as records, and not made by a join of events."""
        source = self.source
        return isinstance(source, RecordFiles) or (isinstance(source, KafkaSettings) and source.records is not None)

    @property
    def in_one_process(self) -> bool:
        """Whether readers, state and runner live and end together: on Prism with its workers in this process."""
        elsewhere = any(flag.startswith("--environment_type") for flag in self.beam_flags)
        return self.streaming and self.runner == "prism" and not elsewhere

    @property
    def runner_retries(self) -> bool:
        """Whether the runner does a bundle again that has failed."""
        return self.runner in ("flink", "dataflow")

    @property
    def streaming(self) -> bool:
        """Whether the feed reads on for ever."""
        return isinstance(self.source, KafkaSettings) and self.source.until is None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
