"""Writes the rows, dead letters and routed actions of a feed: to topics, or to Parquet files of a bounded feed."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from millrace.pipelines.feed.folder import WriteParquetDoFn
from millrace.pipelines.feed.fused_steps import FusedSteps
from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.pipelines.feed.read_plan import ReadPlan
from millrace.pipelines.feed.shard_state import ShardFloors
from millrace.pipelines.kafka.sink import DELIVERY_SECONDS, KafkaRecord, WriteToKafkaDoFn
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.floors import MAX_FLOORS, BlockFloors
from millrace.transforms.batch.hashes import siphash24
from millrace.transforms.batch.provenance import provenance_of, split_source_partition
from millrace.transforms.feed import shards as fid_sharding
from millrace.transforms.feed.config import FeedConfig
from millrace.transforms.feed.rows_folder import DEAD_LETTERS_FOLDER, ROUTED_ACTIONS_FOLDER

_CONTENT_TYPE = (("content-type", record_batch.CONTENT_TYPE.encode("ascii")),)
# A bundle with more rows than this gives several train blocks, to bound memory; a row of a larger block costs no less.
_BUNDLE_ROWS = 20_000
# A trainer remembers rows down to the lowest floor it knows: ten seconds of a partition more are some megabytes.
_FLOOR_SECONDS = 10.0


class Sinks(NamedTuple):
    """DoFns that write (feed shard, train rows), dead letters, and actions that did not join."""

    rows: FusedSteps
    dead_letters: FusedSteps
    routed_actions: FusedSteps


def sinks_of(options: FeedOptions, plan: ReadPlan) -> Sinks:
    """The sinks that the options ask for."""
    if options.parquet is not None:
        return _files(options, options.parquet)
    if not isinstance(options.source, KafkaSettings):
        raise TypeError(f"a feed that writes to topics must read topics, got {options.source!r}")
    connection, topics = options.source.connection, plan.topics
    write = partial(WriteToKafkaDoFn, delivery_seconds=DELIVERY_SECONDS if options.runner_retries else None)
    train = write(connection, topics.train(options.config.model))
    return Sinks(
        FusedSteps(TrainBlocksDoFn(options.config, plan.train_partitions), train),
        FusedSteps(_DeadLetterRecordsDoFn(), write(connection, topics.dead_letter)),
        FusedSteps(_BlockRecordsDoFn(), write(connection, topics.routed_actions)),
    )


def _files(options: FeedOptions, folder: Path) -> Sinks:
    name_rows = _NameBySourceDoFn() if options.reads_records else _TrainFilesDoFn(options.tuning.join_shards)
    return Sinks(
        FusedSteps(name_rows, WriteParquetDoFn(folder)),
        FusedSteps(_NameDeadLettersDoFn(), WriteParquetDoFn(folder / DEAD_LETTERS_FOLDER, rows=False)),
        FusedSteps(_NameByContentDoFn(), WriteParquetDoFn(folder / ROUTED_ACTIONS_FOLDER, rows=False)),
    )


class _DeadLetterRecordsDoFn(beam.DoFn):
    """Dead letters to one message each, with the reason and the source in headers."""

    def process(self, dead: pa.RecordBatch) -> Iterator[KafkaRecord]:
        headers = dead_letter.kafka_headers(dead)
        for value, header in zip(dead.column("value").to_pylist(), headers, strict=True):
            yield KafkaRecord(value, headers=tuple(header))


class _NameDeadLettersDoFn(beam.DoFn):
    """Dead letters to (file name, dead letters), named after the first, so that a retry writes the same file."""

    def process(self, dead: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        topic, partition, offset = (dead.column(name)[0].as_py() for name in ("topic", "partition", "offset"))
        yield f"{topic}-{partition:05d}-{offset:012d}", dead


class TrainBlocksDoFn(beam.DoFn):
    """(feed shard, train rows) to train blocks: one per bundle and partition of the train topic, or a few.

    A block carries the floors of the feed shards of its bundle, as they were when the bundle began; where there are
    more than `max_floors`, the blocks of a partition carry them in turns. A partition that got no block for
    `floor_seconds`, though floors have moved, gets one without rows.

    Args:
      partitions: of the train topic.
      max_floors: most floors in one block.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: FeedConfig,
        partitions: int,
        floor_seconds: float = _FLOOR_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        max_floors: int = MAX_FLOORS,
    ) -> None:
        self._max_floors = max_floors
        self._partitions, self._floor_seconds, self._clock = partitions, floor_seconds, clock
        self._user_slot = fid_sharding.user_slot(config)
        self._no_rows = record_batch.empty(config.train_schema())

    def setup(self) -> None:
        # By train partition: when it last got floors, the last one of each (feed shard, source partition), and how many
        # were sent in turns.
        self._written = [self._clock()] * self._partitions
        self._told: list[dict[tuple[int, int], int]] = [{} for _ in range(self._partitions)]
        self._turns = [0] * self._partitions

    def start_bundle(self) -> None:
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._floors: dict[int, ShardFloors] = {}
        self._latest: dict[tuple[int, int], int] | None = None  # all of them; None until a block needs them
        self._metadata: dict[bytes, bytes] | None = None  # with all of them, where they fit into a block

    def process(self, element: tuple[int, pa.RecordBatch] | ShardFloors) -> Iterator[KafkaRecord]:
        if isinstance(element, ShardFloors):
            self._floors[element.shard] = element
            self._latest = self._metadata = None
            return
        self._held.append(element[1])
        self._held_rows += element[1].num_rows
        if self._held_rows >= _BUNDLE_ROWS:
            yield from self._take()

    def finish_bundle(self) -> Iterator[beam.utils.windowed_value.WindowedValue]:
        for record in [*self._take(), *self._floors_alone()]:
            yield GlobalWindows.windowed_value(record)

    def _take(self) -> Iterator[KafkaRecord]:
        if not self._held:
            return
        batch = record_batch.concat(self._held)
        self._held, self._held_rows = [], 0
        parts = fid_sharding.by_user(batch, self._partitions, self._user_slot)
        for partition, rows in parts.items():
            for _, data in record_batch.split_to_bytes(self._with_floors(rows, partition)):
                yield _train_block(data, partition)

    def _floors_alone(self) -> Iterator[KafkaRecord]:
        """A block without rows for each partition that has not heard of floors for long."""
        now = self._clock()
        for partition in range(self._partitions):
            if now - self._written[partition] < self._floor_seconds:
                continue
            if not self._all_floors().items() <= self._told[partition].items():
                data = record_batch.to_bytes(self._with_floors(self._no_rows, partition))
                yield _train_block(data, partition)

    def _with_floors(self, rows: pa.RecordBatch, partition: int) -> pa.RecordBatch:
        if not self._floors:
            return rows
        floors = self._all_floors()
        self._written[partition] = self._clock()
        if len(floors) > self._max_floors:
            floors = self._next_floors(floors, partition)
            self._told[partition] |= floors
            return rows.replace_schema_metadata(self._encoded(floors))
        self._told[partition] |= floors
        if self._metadata is None:
            self._metadata = self._encoded(floors)
        return rows.replace_schema_metadata(self._metadata)

    def _all_floors(self) -> dict[tuple[int, int], int]:
        """{(feed shard, source partition): floor} of this bundle."""
        if self._latest is None:
            self._latest = {
                (shard, number): floor for shard, each in self._floors.items() for number, floor in each.floors.items()
            }
        return self._latest

    def _next_floors(self, floors: dict[tuple[int, int], int], partition: int) -> dict[tuple[int, int], int]:
        """The `max_floors` that it is the turn of in a train partition."""
        first = self._turns[partition] % len(floors)
        self._turns[partition] = first + self._max_floors
        return dict(islice(cycle(floors.items()), first, first + self._max_floors))

    def _encoded(self, floors: Mapping[tuple[int, int], int]) -> dict[bytes, bytes]:
        some = next(iter(self._floors.values()))
        named = tuple((*key, floor) for key, floor in floors.items())
        block = BlockFloors(some.run, some.shards, self._partitions, named).attach(self._no_rows)
        return block.schema.metadata


def _train_block(data: bytes, partition: int) -> KafkaRecord:
    return KafkaRecord(data, str(partition).encode("ascii"), partition, _CONTENT_TYPE)


class _TrainFilesDoFn(beam.DoFn):
    """(feed shard, all its train rows) to (file name, train rows)."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process(self, element: tuple[int, pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
        yield f"part-{element[0]:05d}-of-{self._shards:05d}", element[1]


class _NameBySourceDoFn(beam.DoFn):
    """(feed shard, train rows) to (file name, train rows), named after the first row, for the same reason."""

    def process(self, element: tuple[int, pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
        partition, offset, row = (int(part[0]) for part in provenance_of(element[1].slice(0, 1)))
        _, partition = split_source_partition(partition)
        yield f"rows-{partition:05d}-{offset:012d}-{row:05d}", element[1]


class _BlockRecordsDoFn(beam.DoFn):
    """Batches to messages, each one Arrow IPC stream."""

    def process(self, batch: pa.RecordBatch) -> Iterator[KafkaRecord]:
        for _, data in record_batch.split_to_bytes(batch):
            yield KafkaRecord(data, headers=_CONTENT_TYPE)


class _NameByContentDoFn(beam.DoFn):
    """Batches to (file name, batch), named by a hash of its bytes, so that a retried bundle writes the same file."""

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        digest = siphash24(pa.array([record_batch.to_bytes(batch)], pa.binary()))
        yield f"{int(digest[0]):016x}", batch
