"""Floors: which source records a feed may still send rows of, as each train block says it in its schema's metadata.

The floor of (feed shard, source partition) is an offset: every row of that shard from a record below it lies in a train
block that was acknowledged before the block with the floor was written, or was counted as dropped. A trainer that has
read a floor of every shard, in every partition of the train topic, need not remember rows below the lowest of them.
"""

import json
from dataclasses import dataclass

import pyarrow as pa

FLOORS_KEY = b"millrace.floors"
"""Key of a train block's schema metadata."""

_MAX_BYTES = 1 << 18  # little beside a block of 1 MB, and several times what a feed writes
_MOST_SHARDS, _MOST_PARTITIONS = 1024, 65_536  # a reader looks at every one of them with each block
MAX_FLOORS = 1024
"""Most floors that a feed writes into one block: 45 KB at 44 bytes each. Where there are more, blocks take turns."""


class FloorsError(ValueError):
    """Metadata that no feed writes."""


@dataclass(frozen=True)
class BlockFloors:
    """The floors in one train block.

    Attributes:
      run: id of the feed's run. Floors of different runs do not complete each other.
      shards: feed shards of the run, numbered from 0.
      train_partitions: partitions of the train topic that the run writes to, numbered from 0.
      floors: (shard, source partition as in `__SOURCE_PARTITION__`, offset), for the shards that the block is from.
    """

    run: str
    shards: int
    train_partitions: int
    floors: tuple[tuple[int, int, int], ...]

    def attach(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with these floors in its schema's metadata."""
        text = json.dumps([self.run, self.shards, self.train_partitions, self.floors], separators=(",", ":"))
        return batch.replace_schema_metadata({**(batch.schema.metadata or {}), FLOORS_KEY: text.encode("ascii")})


def floors_of(batch: pa.RecordBatch) -> BlockFloors | None:
    """The floors of a train block; None when it has none. Raises FloorsError for metadata that no feed writes."""
    data = (batch.schema.metadata or {}).get(FLOORS_KEY)
    if data is None:
        return None
    if len(data) > _MAX_BYTES:
        raise FloorsError(f"{len(data)} bytes of floors, at most {_MAX_BYTES} are read")
    try:
        run, shards, partitions, floors = json.loads(data)
        found = BlockFloors(str(run), shards, partitions, tuple((s, p, o) for s, p, o in floors))
    except (ValueError, TypeError) as error:
        raise FloorsError(f"floors cannot be read: {error}") from error
    numbers = [shards, partitions, *(number for floor in found.floors for number in floor)]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise FloorsError("floors hold something else than integers in [0, 2^63)")
    if not (1 <= shards <= _MOST_SHARDS and 1 <= partitions <= _MOST_PARTITIONS):
        raise FloorsError(
            f"floors of {shards} shards in {partitions} partitions; {_MOST_SHARDS} in {_MOST_PARTITIONS} are read"
        )
    if any(shard >= shards for shard, _, _ in found.floors):
        raise FloorsError(f"floors name a shard outside of 0..{shards - 1}")
    return found
