"""From which source offsets on a feed may still send rows, as the blocks of all partitions of the train topic say."""

from millrace.transforms.batch.floors import BlockFloors

_MAX_RUNS = 4  # feeds that write one train topic at a time, such as one per source topic; older runs are forgotten
# Of a run, and of all bases, in one partition of the train topic: 256 shards times 1,024 source partitions, some 30 MB.
# A block may name 17,000 source partitions, and the next one others.
_MOST_FLOORS = 1 << 18


class _Run:
    """Floors of one run of a feed in one partition of the train topic."""

    def __init__(self) -> None:
        self._floors: dict[int, dict[int, int]] = {}
        self._size = 0

    def add(self, floors: BlockFloors) -> dict[int, int]:
        """{source partition: lowest floor of all shards}, for those in `floors` that every shard has named."""
        for shard, source, offset in floors.floors:
            before = self._floors.get(source, {}).get(shard)
            if before is None and self._size >= _MOST_FLOORS:
                continue
            self._size += before is None
            self._floors.setdefault(source, {})[shard] = max(offset, before or 0)
        sources = {source for _, source, _ in floors.floors} & self._floors.keys()
        return {
            source: min(self._floors[source].values())
            for source in sources
            if len(self._floors[source]) >= floors.shards
        }


class FloorTracker:
    """Computes the base of each source partition: every row of a record below it was read, or will never come.

    A block says what a feed shard has sent before it. So a base needs the floors of all shards of a run, in every
    partition of the train topic that the run writes to; before that it is unknown. Floors beyond what any feed has
    are passed over: what lies below them is remembered.
    """

    def __init__(self) -> None:
        self._runs: dict[int, dict[str, _Run]] = {}
        self._bases: dict[int, dict[int, int]] = {}

    def add(self, train_partition: int, floors: BlockFloors) -> dict[int, int]:
        """Takes the floors of a block that was read from `train_partition`, after its rows.

        Returns: {source partition: base} of those that the block may have changed.
        """
        runs = self._runs.setdefault(train_partition, {})
        run = runs.pop(floors.run, None) or _Run()
        runs[floors.run] = run  # the newest is last
        if len(runs) > _MAX_RUNS:
            del runs[next(iter(runs))]
        here = self._bases.setdefault(train_partition, {})
        known = run.add(floors)
        for source, floor in known.items():
            if source in here or len(here) < _MOST_FLOORS:
                here[source] = max(floor, here.get(source, 0))
        if len(self._bases) < floors.train_partitions:
            return {}
        others = [self._bases.get(partition, {}) for partition in range(floors.train_partitions)]
        return {
            source: min(each[source] for each in others) for source in known if all(source in each for each in others)
        }
