"""Train blocks carry floors, and partitions that get no rows hear of them too."""

from collections.abc import Sequence

import pyarrow as pa

from millrace.pipelines.feed.shard_state import ShardFloors
from millrace.pipelines.feed.sinks import TrainBlocksDoFn
from millrace.training.stream.floor_tracker import FloorTracker
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import MAX_FLOORS, BlockFloors, floors_of
from millrace.transforms.feed.join import join_bounded
from millrace.transforms.feed.train_rows import rows_to_train_batch
from tests.transforms.feed.join_rows import actions, config, impressions

PARTITIONS = 4


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _rows(uid: int) -> pa.RecordBatch:
    batch, _ = rows_to_train_batch(join_bounded(impressions(("a", 1, 0)), actions(), config()).rows, config())
    index = batch.schema.get_field_index(record_batch.UID)
    return batch.set_column(index, batch.schema.field(index), pa.array([uid]))


def _bundle(
    blocks: TrainBlocksDoFn, floors: Sequence[ShardFloors], rows: Sequence[pa.RecordBatch] = ()
) -> dict[int, pa.RecordBatch]:
    blocks.start_bundle()
    for each in floors:
        assert list(blocks.process(each)) == []
    for each in rows:
        assert list(blocks.process((0, each))) == []
    records = [windowed.value for windowed in blocks.finish_bundle()]
    return {record.partition: record_batch.from_bytes(record.value) for record in records}


def test_a_block_carries_the_floors_of_the_shards_of_its_bundle() -> None:
    blocks = TrainBlocksDoFn(config(), PARTITIONS, clock=_Clock())
    blocks.setup()
    floors = [ShardFloors("run", 0, 2, {7: 5, 8: 6}), ShardFloors("run", 1, 2, {7: 9})]
    ((partition, block),) = _bundle(blocks, floors, [_rows(0)]).items()
    assert block.num_rows == 1
    assert floors_of(block) == BlockFloors("run", 2, PARTITIONS, ((0, 7, 5), (0, 8, 6), (1, 7, 9)))
    assert _bundle(blocks, floors, [_rows(0)])[partition].schema.equals(config().train_schema())


def test_a_partition_without_rows_gets_floors_alone_after_a_while_and_only_when_they_moved() -> None:
    clock = _Clock()
    blocks = TrainBlocksDoFn(config(), PARTITIONS, clock=clock)
    blocks.setup()
    assert _bundle(blocks, [ShardFloors("run", 0, 1, {7: 5})]) == {}
    clock.now += 11.0
    written = _bundle(blocks, [ShardFloors("run", 0, 1, {7: 6})], [_rows(1)])
    assert {partition: block.num_rows for partition, block in written.items()} == {0: 0, 1: 1, 2: 0, 3: 0}
    assert all(floors_of(block).floors == ((0, 7, 6),) for block in written.values())
    clock.now += 11.0
    assert _bundle(blocks, [ShardFloors("run", 0, 1, {7: 6})]) == {}
    assert set(_bundle(blocks, [ShardFloors("run", 0, 1, {7: 7})])) == {0, 1, 2, 3}


def test_without_floors_there_are_only_rows() -> None:
    clock = _Clock()
    blocks = TrainBlocksDoFn(config(), PARTITIONS, clock=clock)
    blocks.setup()
    clock.now += 100.0
    (block,) = _bundle(blocks, [], [_rows(0)]).values()
    assert floors_of(block) is None
    assert _bundle(blocks, [ShardFloors("run", 0, 1, {})]) == {}


def test_more_floors_than_a_block_takes_are_sent_in_turns_to_each_partition() -> None:
    clock = _Clock()
    blocks = TrainBlocksDoFn(config(), PARTITIONS, clock=clock, max_floors=10)
    blocks.setup()
    floors = [ShardFloors("run", shard, 2, dict.fromkeys(range(12), 5)) for shard in range(2)]
    tracker = FloorTracker()
    bases: dict[int, int] = {}
    for bundle in range(4 * PARTITIONS):
        clock.now += 11.0
        for partition, block in _bundle(blocks, floors, [_rows(0)] if bundle % 2 else []).items():
            found = floors_of(block)
            assert found is not None and len(found.floors) == 10
            bases |= tracker.add(partition, found)
    assert bases == dict.fromkeys(range(12), 5)
    clock.now += 11.0
    assert _bundle(blocks, floors) == {}


def test_a_feed_of_very_many_shards_and_partitions_writes_floors_that_a_trainer_reads() -> None:
    blocks = TrainBlocksDoFn(config(), 1, clock=_Clock())
    blocks.setup()
    far = {(1 << 53) - 1 - number: (1 << 63) - 1 for number in range(100)}
    (block,) = _bundle(
        blocks, [ShardFloors("run", 1023 - shard, 1024, far) for shard in range(200)], [_rows(0)]
    ).values()
    found = floors_of(block)
    assert found is not None and len(found.floors) == MAX_FLOORS
