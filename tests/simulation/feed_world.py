"""Events, a feed, a train topic and a trainer, under crashes, lost answers, reorder, clock steps and topics made anew.

The join and its log, floors, commits, provenance and the trainer's position are those of the product. Brokers, clocks,
runners and disks are not. In the end every row must have been trained exactly once, or its record must have been in a
topic that was deleted or cut off before.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.pipelines.feed.floored_machine import FlooredMachine, floored
from millrace.pipelines.feed.join import JoinMachineFactory
from millrace.pipelines.feed.machine import CLOSE
from millrace.pipelines.feed.shard_clock import ShardClock
from millrace.pipelines.kafka.commits import FloorCommits
from millrace.pipelines.kafka.pace import FeedProgress
from millrace.training.stream.floor_tracker import FloorTracker
from millrace.training.stream.position import Passed, Position
from millrace.training.stream.seen_rows import Admission, SeenRows
from millrace.transforms.batch.floors import BlockFloors
from millrace.transforms.batch.provenance import provenance_of, source_partition
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.event_schemas import PLACED_ACTION_SCHEMA, impression_schema
from millrace.transforms.feed.spans import Span, shard_pieces, with_spans
from tests.simulation.log import Log
from tests.simulation.world import World

_CONFIG = FeedConfig("m", (FidFeature("user", 1, "user_id"),), (LabelRule("click", ("click",)),), window_seconds=5.0)
_IMPRESSIONS, _ACTIONS = b"I", b"A"
_KINDS = frozenset([_IMPRESSIONS])
_SHOWN, _CLICKED, _TRAIN = "events.impressions", "events.actions", "train.m"
_SCHEMAS = {_SHOWN: impression_schema({}), _CLICKED: PLACED_ACTION_SCHEMA}
_PARTITIONS = {_SHOWN: 2, _CLICKED: 1, _TRAIN: 2}
_STEPS = 60
_HOUR = 3600.0
_HORIZON = 24  # records that a trainer remembers when its floors are switched off
_FACTORY = JoinMachineFactory(_CONFIG)

Row = tuple[int, int, int]
"""(source partition, offset, row)."""
Place = tuple[str, int]
"""(topic, partition)."""


class _Shown(NamedTuple):
    request: str
    user: int
    items: tuple[int, ...]


class _Clicked(NamedTuple):
    request: str
    item: int


class _Block(NamedTuple):
    rows: tuple[np.ndarray, np.ndarray, np.ndarray]
    floors: BlockFloors


@dataclass
class _Position:
    """Where a feed reads a partition: the incarnation, where it began, and the next offset."""

    topic_id: int
    begin: int
    offset: int


@dataclass
class _Feed:
    """What dies with the process."""

    run: str
    shards: int
    machines: dict[int, FlooredMachine]
    clocks: dict[int, ShardClock]
    progress: FeedProgress
    commits: FloorCommits
    positions: dict[Place, _Position] = field(default_factory=dict)
    pieces: list[tuple[int, bytes, pa.RecordBatch]] = field(default_factory=list)
    arrived: dict[Row, float] = field(default_factory=dict)
    read_at: list[tuple[float, dict[Place, int]]] = field(default_factory=list)


class FeedWorld(World):
    """See the module."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        super().__init__(seed, without)
        self._log = Log()
        for topic, partitions in _PARTITIONS.items():
            self._log.create(topic, partitions)
        self._now, self._ahead = 1_000.0, 0.0  # monotonic seconds, and what the wall clock adds
        self._group: dict[Place, tuple[int, int]] = {}
        self._requests = 0
        self._clicks: list[_Clicked] = []
        self._sent: set[Row] = set()
        self._excused: set[Row] = set()
        self._shards = self.random.choice([1, 1, 2, 3])
        self._keeps_state = self.random.random() < 0.4  # a runner with checkpoints, such as Flink
        self._saved: bytes | None = None
        self._runs = 0
        self._is_calm = False  # no more faults
        self._start_feed()
        self._checkpoint: tuple[Position, Counter[Row]] = (Position(), Counter())
        self._start_trainer()

    def run(self) -> None:
        for _ in range(_STEPS):
            self.one_of(
                [
                    (14, self._show), (10, self._click), (14, self._read), (20, self._bundle), (10, self._pass_time),
                    (2, self._kill_feed), (2, self._save_feed), (1, self._step_clock), (12, self._train),
                    (3, self._save_trainer), (2, self._kill_trainer), (1, self._make_anew), (1, self._cut_off),
                    (1, self._look),
                ]
            )  # fmt: skip
        self._settle()
        counts = self._counts
        for row in self._sent:
            times = counts[row]
            allowed = times <= 1 if row in self._excused else times == 1
            self.promise(allowed, f"row {row} was trained {times} times")
        self.promise(not counts.keys() - self._sent, "a row was trained that nobody sent")

    def _settle(self) -> None:
        """No more faults: everything is read, processed and trained."""
        self._is_calm = True
        self._look()
        for _ in range(3):
            while self._read(8):
                pass
            while self._feed.pieces:
                for shard in range(self._shards):
                    self._bundle(shard)
            self._now += 2 * _CONFIG.window_seconds + 1.0
            for shard in range(self._shards):
                self._bundle(shard)
        while self._train(1 << 20):
            pass

    # Events.

    def _show(self) -> None:
        partition = self.random.randrange(_PARTITIONS[_SHOWN])
        for _ in range(self.random.randint(1, 4)):
            self._requests += 1
            items = tuple(range(self.random.randint(1, 3)))
            shown = _Shown(f"r{self._requests}", self.random.randrange(50), items)
            log = self._log.partitions(_SHOWN)[partition]
            if self.random.random() < 0.1:
                log.skip()  # another producer's control record
            offset = log.append(shown)
            source = self._source(_SHOWN, self._log.id_of(_SHOWN), partition)
            self._sent |= {(source, offset, row) for row in range(len(items))}
            self._clicks += [_Clicked(shown.request, item) for item in items if self.random.random() < 0.4]

    def _click(self) -> None:
        for _ in range(min(len(self._clicks), self.random.randint(1, 4))):
            self._log.partitions(_CLICKED)[0].append(self._clicks.pop(self.random.randrange(len(self._clicks))))

    def _make_anew(self) -> None:
        """An operator deletes a topic and makes it anew."""
        topic = self.random.choice([_SHOWN, _CLICKED, _TRAIN])
        self._excuse(topic, {number: part.end for number, part in enumerate(self._log.partitions(topic))})
        self._log.create(topic, _PARTITIONS[topic])

    def _cut_off(self) -> None:
        """Retention removes the older half of a partition."""
        topic = self.random.choice([_SHOWN, _TRAIN])
        number = self.random.randrange(_PARTITIONS[topic])
        part = self._log.partitions(topic)[number]
        low = (part.low + part.end) // 2
        self._excuse(topic, {number: low})
        part.trim(low)

    def _excuse(self, topic: str, ends: dict[int, int]) -> None:
        """Rows of what is removed, below {partition: offset}, need not be trained any more."""
        if topic == _CLICKED:
            return
        for number, end in ends.items():
            for offset, value in self._log.partitions(topic)[number].records.items():
                if offset >= end:
                    continue
                if topic == _TRAIN:
                    self._excused |= set(_rows_of(value.rows))
                else:
                    source = self._source(_SHOWN, self._log.id_of(_SHOWN), number)
                    self._excused |= {(source, offset, row) for row in range(len(value.items))}

    # The feed.

    def _start_feed(self) -> None:
        self._runs += 1
        progress = FeedProgress(lambda: self._now)
        floors = None if "floor commits" in self.without else self._floors
        self._feed = _Feed(
            run=f"run-{self._runs}", shards=self._shards, machines={}, clocks={}, progress=progress,
            commits=FloorCommits(self._commit, lambda: self._now, floors),
        )  # fmt: skip
        for shard in range(self._shards):
            self._feed.machines[shard] = floored(_FACTORY, _KINDS, None)
        for topic in (_SHOWN, _CLICKED):
            self._open(topic)

    def _open(self, topic: str) -> None:
        """Starts to read the partitions of an incarnation that the feed does not know."""
        topic_id = self._log.id_of(topic)
        for number, part in enumerate(self._log.partitions(topic)):
            offset, committed_id = self._group.get((topic, number), (part.low, topic_id))
            if committed_id != topic_id and "source numbers" not in self.without:
                offset = part.low
            offset = min(max(offset, part.low), part.end)
            self._feed.positions[topic, number] = _Position(topic_id, offset, offset)

    def _look(self) -> None:
        """The feed and the trainer look at the topics' ids."""
        for topic in (_SHOWN, _CLICKED):
            if self._feed.positions[topic, 0].topic_id != self._log.id_of(topic):
                self._open(topic)
        if self._train_id != self._log.id_of(_TRAIN):
            self._open_train()

    def _read(self, most: int = 4) -> bool:
        """Reads one block of one partition; returns whether any partition had something."""
        places = [
            place
            for place, position in self._feed.positions.items()
            if position.topic_id == self._log.id_of(place[0])
            and position.offset < self._log.partitions(place[0])[place[1]].end
        ]
        if not places:
            return False
        topic, number = place = self.random.choice(places)
        position = self._feed.positions[place]
        part = self._log.partitions(topic)[number]
        before, start = position.offset, max(position.offset, part.low)
        records, after = part.read(start, self.random.randint(1, most))
        position.offset = after
        source = self._source(topic, position.topic_id, number)
        block = with_spans(
            _batch(topic, source, records, self._wall_ms()), [Span(source, position.begin, before, after)]
        )
        kind = _ACTIONS if topic == _CLICKED else _IMPRESSIONS
        for shard, piece in shard_pieces(_by_request(block, self._shards), block, block, self._shards):
            self._feed.pieces.append((shard, kind, piece))
        reached = {key: each.offset for key, each in self._feed.positions.items()}
        self._feed.read_at.append((self._now, reached))
        if not self._keeps_state:
            self._reach(reached)
        return True

    def _reach(self, reached: dict[Place, int]) -> None:
        if "floor commits" in self.without:
            ripe = [each for at, each in self._feed.read_at if at <= self._now - _CONFIG.window_seconds]
            if ripe:
                self._feed.commits.reached(ripe[-1])
            return
        self._feed.commits.reached(reached)

    def _floors(self, places: Iterable[Place]) -> dict[Place, int]:
        found = {}
        for place in places:
            position = self._feed.positions[place]
            floor = self._feed.progress.floor(self._source(place[0], position.topic_id, place[1]))
            if floor is not None:
                found[place] = floor
        return found

    def _commit(self, offsets: dict[Place, int]) -> None:
        for place, offset in offsets.items():
            self._group[place] = offset, self._feed.positions[place].topic_id

    def _bundle(self, shard: int | None = None) -> None:
        """A bundle of one shard: some of its pieces in any order, what is due, and the writes."""
        feed = self._feed
        shard = self.random.randrange(self._shards) if shard is None else shard
        mine = [piece for piece in feed.pieces if piece[0] == shard]
        chosen = self.random.sample(mine, min(len(mine), self.random.randint(0, 4)))
        machine = feed.machines[shard]
        floors = machine.floors()
        left = []
        for piece in chosen:
            feed.pieces = [each for each in feed.pieces if each is not piece]
            self._note_arrival(piece)
            left.append(machine.apply(piece[1], self._shard_ms(shard), piece[2]))
        if machine.next_close_ms is not None and machine.next_close_ms <= self._shard_ms(shard):
            left.append(machine.apply(CLOSE, self._shard_ms(shard), None))
        machine.take_side()
        rows = [batch for batch in left if batch.num_rows and "actions" in batch.schema.names]
        self._check_windows(rows)
        written = self._write(shard, rows, floors)
        if written:
            feed.progress.finished(shard, self._shards, machine.ends(), machine.all_floors())
        else:
            self._kill_feed()

    def _write(self, shard: int, rows: Sequence[pa.RecordBatch], floors: dict[int, int]) -> bool:
        """Writes train blocks; False when the process dies before all are acknowledged."""
        where = _PARTITIONS[_TRAIN]
        named = BlockFloors(
            self._feed.run, self._shards, where, tuple((shard, number, floor) for number, floor in floors.items())
        )
        parts: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for batch in rows:
            user = batch.column("user_id").to_numpy()
            source = provenance_of(batch)
            for number in range(where):
                of = user % where == number
                if of.any():
                    parts.setdefault(number, []).append(tuple(each[of] for each in source))  # type: ignore[arg-type]
        for number in range(where):
            if number not in parts and self.random.random() < 0.2:
                parts[number] = []
        for number, pieces in self.random.sample(sorted(parts.items(), key=lambda each: each[0]), len(parts)):
            if self._fails(0.03):
                return False
            columns = [np.concatenate([np.zeros(0, np.int64), *(each[i] for each in pieces)]) for i in range(3)]
            block = _Block((columns[0], columns[1], columns[2]), named)
            part = self._log.partitions(_TRAIN)[number]
            part.append(block)
            if self._fails(0.1):
                part.append(block)  # the answer was lost, and the block is sent again
        return not self._fails(0.03)

    def _fails(self, probability: float) -> bool:
        return not self._is_calm and self.random.random() < probability

    def _note_arrival(self, piece: tuple[int, bytes, pa.RecordBatch]) -> None:
        if piece[1] == _IMPRESSIONS and piece[2].num_rows:
            for row in _rows_of(provenance_of(piece[2])):
                self._feed.arrived.setdefault(row, self._now)

    def _check_windows(self, rows: Sequence[pa.RecordBatch]) -> None:
        for batch in rows:
            without = np.array([not each for each in batch.column("actions").to_pylist()])
            for row in _rows_of(tuple(each[without] for each in provenance_of(batch))):
                waited = self._now - self._feed.arrived.get(row, self._now - _HOUR)
                early = waited < _CONFIG.window_seconds - 0.01
                self.promise(not early, f"row {row} became a negative after {waited:.1f} s")

    def _kill_feed(self) -> None:
        """The process dies, and another one begins where its runner or its group says."""
        saved = self._saved if self._keeps_state else None
        if saved is None:
            self._start_feed()
            return
        self._restore_feed(saved)

    def _save_feed(self) -> None:
        """A checkpoint of the runner: positions, what is under way, and the machines, all of one moment."""
        if self._keeps_state:
            feed = self._feed
            machines = {shard: (machine.to_bytes(), self._shard_ms(shard)) for shard, machine in feed.machines.items()}
            positions = {
                place: _Position(each.topic_id, each.begin, each.offset) for place, each in feed.positions.items()
            }
            self._saved = (machines, positions, list(feed.pieces))  # type: ignore[assignment]

    def _restore_feed(self, saved: object) -> None:
        machines, positions, pieces = saved  # type: ignore[misc]
        run = self._feed.run
        self._start_feed()
        feed = self._feed
        feed.run = run
        feed.machines = {shard: floored(_FACTORY, _KINDS, data) for shard, (data, _) in machines.items()}
        feed.clocks = {shard: ShardClock(at, lambda: self._now) for shard, (_, at) in machines.items()}
        feed.positions = {place: _Position(each.topic_id, each.begin, each.offset) for place, each in positions.items()}
        feed.pieces = list(pieces)
        self._look()

    # Time.

    def _wall_ms(self) -> int:
        return int((1_700_000_000 + self._now + self._ahead) * 1000)

    def _shard_ms(self, shard: int) -> int:
        if "shard clock" in self.without:
            return self._wall_ms()
        clock = self._feed.clocks.get(shard)
        if clock is None:
            clock = self._feed.clocks[shard] = ShardClock(self._wall_ms(), lambda: self._now)
        return clock.now_ms()

    def _pass_time(self) -> None:
        self._now += self.random.choice([0.1, 0.5, 2.0, 6.0])

    def _step_clock(self) -> None:
        self._ahead = self.random.choice([-_HOUR, 0.0, _HOUR])

    # The trainer.

    def _start_trainer(self) -> None:
        position, counts = self._checkpoint
        self._position, self._counts = position.copy(), Counter(counts)
        self._reader_seen = self._new_seen(self._position.seen.copy())
        self._tracker = FloorTracker()
        self._queue: list[tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Passed]] = []
        self._offsets = dict(self._position.offsets)
        self._offset_ids = dict(self._position.topic_ids)
        self._open_train()

    def _new_seen(self, seen: SeenRows) -> "SeenRows | _Horizon":
        return _Horizon(seen) if "floors" in self.without else seen

    def _open_train(self) -> None:
        self._train_id = self._log.id_of(_TRAIN)
        for number, part in enumerate(self._log.partitions(_TRAIN)):
            offset = self._offsets.get(number, part.low)
            known = self._offset_ids.get(number, "")
            if "incarnations" in self.without:
                offset = min(offset, part.end)
            elif (known and known != str(self._train_id)) or offset > part.end:
                offset = part.low
            self._offsets[number] = max(offset, part.low)
            self._offset_ids[number] = str(self._train_id)

    def _train(self, most: int = 3) -> bool:
        """Reads some blocks of one partition and trains on some of what is queued."""
        number = self.random.randrange(_PARTITIONS[_TRAIN])
        had = False
        if self._train_id == self._log.id_of(_TRAIN):
            part = self._log.partitions(_TRAIN)[number]
            blocks, after = part.read(max(self._offsets[number], part.low), most)
            had = self._offsets[number] < part.end
            for offset, block in blocks:
                self._take(number, offset, block)
            self._offsets[number] = max(after, self._offsets[number])
        elif most > 3:
            self._look()
            had = True
        for _ in range(min(len(self._queue), most)):
            rows, passed = self._queue.pop(0)
            self._counts.update(_rows_of(rows))
            self._position.applied(*rows)
            self._position.passed(passed)
        others = any(
            self._offsets[each] < part.end for each, part in enumerate(self._log.partitions(_TRAIN)) if each != number
        )
        return had or others or bool(self._queue)

    def _take(self, number: int, offset: int, block: _Block) -> None:
        admission = self._reader_seen.admit(*block.rows)
        bases = self._tracker.add(number, block.floors)
        self._reader_seen.raise_bases(bases)
        rows = tuple(each[admission.new] for each in block.rows)
        passed = Passed({number: offset + 1}, {number: str(self._train_id)}, bases)
        self._queue.append((rows, passed))  # type: ignore[arg-type]

    def _save_trainer(self) -> None:
        self._checkpoint = self._position.copy(), Counter(self._counts)

    def _kill_trainer(self) -> None:
        self._start_trainer()

    def _source(self, topic: str, topic_id: int, partition: int) -> int:
        if "source numbers" in self.without:
            return partition + (8 if topic == _CLICKED else 0)
        return source_partition(topic_id, partition)


class _Horizon:
    """Remembers a fixed number of records, and refuses older ones."""

    def __init__(self, seen: SeenRows) -> None:
        self._seen = seen

    def admit(self, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> Admission:
        for each in np.unique(partition).tolist():
            newest = int(offset[partition == each].max())
            self._seen.raise_bases({each: newest - _HORIZON})
        return self._seen.admit(partition, offset, row)

    def raise_bases(self, bases: dict[int, int]) -> None:
        pass


def _rows_of(rows: Sequence[np.ndarray]) -> list[Row]:
    return list(zip(*(each.tolist() for each in rows), strict=True))


def _batch(topic: str, source: int, records: Sequence[tuple[int, object]], now_ms: int) -> pa.RecordBatch:
    columns: list[list[object]] = [[] for _ in _SCHEMAS[topic]]
    for offset, value in records:
        if isinstance(value, _Shown):
            for row, item in enumerate(value.items):
                for column, cell in zip(
                    columns, (value.request, value.user, item, now_ms, source, offset, row), strict=True
                ):
                    column.append(cell)
        elif isinstance(value, _Clicked):
            cells = (value.request, value.item, "click", now_ms, None, source, offset)
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
    schema = _SCHEMAS[topic]
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


def _by_request(block: pa.RecordBatch, shards: int) -> list[tuple[int, pa.RecordBatch]]:
    if shards == 1:
        return [(0, with_spans(block, None))]
    of = np.array([int(request[1:]) % shards for request in block.column("request_id").to_pylist()], np.int64)
    plain = with_spans(block, None)
    return [(shard, plain.filter(pa.array(of == shard))) for shard in range(shards)]
