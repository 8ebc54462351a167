"""Settings of a training feed, grouped by concern; plain dataclasses that a launcher fills from its flags."""

from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import UserError
from runtime.kafka_client import KafkaConnection
from runtime.topics import Topics
from transforms.feature_list import FeedConfig

RUNNERS = ("prism", "flink", "direct", "dataflow")


@dataclass(frozen=True)
class Tuning:
    """What trades latency against processor time.

    Args:
      join_shards: keys of the join; each costs a bundle a poll, more than one lets a join use more than one core.
      feed_shards: partitions of a train topic that the feed creates; an existing topic decides for itself.
      splits: Kafka readers.
      poll_seconds: rest of an idle reader.
      timer_seconds: how often an idle join looks for impressions whose window has closed.
    """

    join_shards: int = 1
    feed_shards: int = 4
    splits: int = 1
    poll_seconds: float = 0.1
    timer_seconds: float = 0.2

    def __post_init__(self) -> None:
        for name in ("join_shards", "feed_shards", "splits"):
            if not 1 <= getattr(self, name) <= 1024:
                raise UserError(_flag(name), getattr(self, name), "out of range", "choose 1..1024")
        for name in ("poll_seconds", "timer_seconds"):
            if not 0.01 <= getattr(self, name) <= 60.0:
                raise UserError(_flag(name), getattr(self, name), "out of range", "choose 0.01..60")


@dataclass(frozen=True)
class KafkaSettings:
    """Where events come from and train blocks go to.

    Args:
      start: earliest, latest, group, time:MILLISECONDS, or JSON {"impressions": {"0": 17}, "actions": {...}}.
      until: None reads on for ever; `end` stops at the ends seen at the start; time: and JSON as in `start`.
      group: consumer group that progress is committed to and that `start=group` begins from.
    """

    connection: KafkaConnection
    topics: Topics = field(default_factory=Topics)
    start: str = "group"
    until: str | None = None
    group: str = "millrace-feed"


@dataclass(frozen=True)
class FileSettings:
    """JSON-lines event files to read; paths may hold wildcards, `.gz` is decompressed."""

    impressions: str
    actions: str


@dataclass(frozen=True)
class FeedOptions:
    """One feed.

    Args:
      config: features, labels, window and sampling.
      source: Kafka topics or files.
      parquet: folder for Parquet files in place of the train topic; bounded feeds only.
      runner: one of `RUNNERS`.
      beam_flags: passed to Beam as they are; they beat the defaults of `pipelines.runners`.
      work_folder: logs and checkpoints of runners that this process starts.
    """

    config: FeedConfig
    source: KafkaSettings | FileSettings
    parquet: Path | None = None
    runner: str = "prism"
    beam_flags: tuple[str, ...] = ()
    work_folder: Path = Path(".state/feed")
    tuning: Tuning = field(default_factory=Tuning)

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

    @property
    def streaming(self) -> bool:
        return isinstance(self.source, KafkaSettings) and self.source.until is None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
