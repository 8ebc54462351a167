"""Feeds changed train blocks to the trainer's gate: nothing is raised, and what passes can be trained.

    python -m tests.fuzz.fuzz_train_blocks --runs 1000000 --seed 1

Time and memory are bounded by the length of a block. A run depends on the sum of seed and its number alone.
"""

import random
import resource
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from millrace.examples.feed_ranking import FeedRanking
from millrace.training.stream.batcher import Batcher
from millrace.training.stream.gate import BadBlock, Checked, Gate
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.seen_rows import SeenRows
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import FLOORS_KEY, BlockFloors
from tests.fakes.poison import BLOCK_FAULTS, ROW_FAULTS, replaced
from tests.fakes.train_blocks import make_batch
from tests.fuzz import runs

_TASK = FeedRanking()
_LAYOUT = TrainLayout.of(_TASK, audit=True)
_GATE = Gate(_LAYOUT)
_BLOCKS = [
    BlockFloors("run", 2, 1, ((0, 0, 0), (1, 0, 0))).attach(make_batch(_TASK, first, records))
    for first, records in ((0, 1), (50, 2), (1000, 5), (10, 0))
]
_BYTES = [record_batch.to_bytes(block) for block in _BLOCKS]
_EDGES = [0, 1, -1, 63, 64, 16_383, 16_384, 2**31 - 1, -(2**31), 2**62, 2**63 - 1, -(2**63)]
_FLOATS = [0.0, -0.0, 1.0, -1.0, 1e38, 1e-45, float("nan"), float("inf"), float("-inf"), record_batch.INVALID_LABEL]
# All that a run may take: a block is at most some 10 KB, so a run that takes more than this per byte is a defect. The
# machine may stop a process for a while, but not let it use its processor for so long.
_SECONDS, _ARROW_BYTES, _PROCESS_BYTES = 2.0, 64 << 20, 1 << 30


def _changed_bytes(draw: random.Random) -> bytes:
    value, other = draw.choice(_BYTES), draw.choice(_BYTES)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        at, length = draw.randrange(len(value)), draw.randrange(1, 17)
        kind = draw.randrange(7)
        if kind == 0:
            value = value[:at] or b"\0"
        elif kind == 1:
            value = value[:at] + draw.randbytes(length) + value[at:]
        elif kind == 2:
            value = value[:at] + value[at + length :] or b"\0"
        elif kind == 3:
            value = value[:at] + other[draw.randrange(len(other)) :]
        elif kind == 4:  # a number of 4 or 8 bytes, as offsets, lengths and places in a flatbuffer are
            width = draw.choice([4, 8])
            at -= at % width
            number = draw.choice(_EDGES) & ((1 << 8 * width) - 1)
            value = value[:at] + number.to_bytes(width, "little") + value[at + width :]
        else:
            flipped = bytearray(value)
            flipped[at] ^= 1 << draw.randrange(8)
            value = bytes(flipped)
    return value


def _changed_values(draw: random.Random) -> bytes:
    block = draw.choice(_BLOCKS[:3])
    name = draw.choice([field.name for field in record_batch.METADATA_FIELDS] + ["user"])
    kind = block.schema.field(name).type
    values = block.column(name).to_pylist()
    row = draw.randrange(len(values))
    values[row] = _value_of(kind, draw)
    return record_batch.to_bytes(replaced(block, name, pa.array(values, kind)))


def _value_of(kind: pa.DataType, draw: random.Random) -> object:
    if draw.random() < 0.1:
        return None
    if pa.types.is_list(kind):
        return [_value_of(kind.value_type, draw) for _ in range(draw.randrange(4))]
    if pa.types.is_floating(kind):
        return draw.choice(_FLOATS)
    if pa.types.is_integer(kind):
        half = 1 << (kind.bit_width - 1)
        return max(-half, min(half - 1, draw.choice(_EDGES)))
    return draw.choice(["", "x", "ä" * 1000])


def _changed_columns(draw: random.Random) -> bytes:
    block = draw.choice(_BLOCKS)
    index = draw.randrange(block.num_columns)
    field = block.schema.field(index)
    change = draw.randrange(4)
    if change == 0:
        block = block.drop_columns([field.name])
    elif change == 1:
        block = block.append_column(field, block.column(index))
    elif change == 2:
        kind = draw.choice([pa.null(), pa.int8(), pa.float64(), pa.list_(pa.null()), pa.struct([("a", pa.int64())])])
        block = block.set_column(index, pa.field(field.name, kind), pa.nulls(block.num_rows, kind))
    else:
        encoded = pa.array(["a"] * block.num_rows).dictionary_encode()
        block = block.append_column("extra", encoded)
    return record_batch.to_bytes(block)


def _changed_floors(draw: random.Random) -> bytes:
    text = bytearray((_BLOCKS[0].schema.metadata or {})[FLOORS_KEY])
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(text))
        text[at : at + draw.randrange(3)] = draw.choice([b"", b"[", b"]", b"-", b"1e9", b"9" * 30, b"null", b'"'])
        text = text or bytearray(b"[")
    return record_batch.to_bytes(draw.choice(_BLOCKS).replace_schema_metadata({FLOORS_KEY: bytes(text)}))


def _known_fault(draw: random.Random) -> bytes:
    block = draw.choice(_BLOCKS[:3])
    if draw.random() < 0.5:
        name = draw.choice([name for name in BLOCK_FAULTS if name not in ("too large", "14 KB that would take 300 MB")])
        return BLOCK_FAULTS[name][1](block)
    for _ in range(draw.randrange(1, 4)):
        _, change = draw.choice(list(ROW_FAULTS.values()))
        block = change(block, draw.randrange(block.num_rows))
    return record_batch.to_bytes(block)


_CHANGES: dict[Callable[[random.Random], bytes], int] = {
    _changed_bytes: 10,
    _changed_values: 4,
    _changed_columns: 1,
    _changed_floors: 1,
    _known_fault: 2,
}


def _check(value: bytes, checked: Checked) -> None:
    """Raises AssertionError unless what passed can be trained, and what did not is told."""
    if checked.rows is None:
        (refused,) = checked.refused
        assert refused.reason in list(BadBlock) and refused.values == (value,)
        return
    dead = sum(record_batch.from_bytes(data).num_rows for each in checked.refused for data in each.values)
    assert dead == sum(each.rows for each in checked.refused), "a dead letter lacks rows"
    batcher = Batcher(_LAYOUT, 7, SeenRows())
    batcher.add(checked.rows, 0, 1, checked.floors)
    taken = refused_rows = 0
    while batcher.pending:
        ticket, batch = batcher.take()
        tensors = _LAYOUT.arrays(batch)
        assert np.isfinite(tensors.weights).all() and (tensors.weights >= 0).all()
        assert ((tensors.sample_rates > 0) & (tensors.sample_rates <= 1)).all()
        assert not np.isposinf(tensors.labels).any() and tensors.labels.shape == (batch.num_rows, 1)
        for name, splits in tensors.splits.items():
            assert splits[0] == 0 and (np.diff(splits) >= 0).all() and splits[-1] == len(tensors.values[name])
        taken += ticket.rows
        refused_rows += ticket.passed.duplicates + ticket.passed.too_old
    assert taken + refused_rows == checked.rows.num_rows, "a row is lost"


def _run(seed: int) -> bool:
    """Whether a row of the changed block passed. Raises AssertionError when the gate did wrong."""
    draw = random.Random(seed)
    (change,) = draw.choices(list(_CHANGES), list(_CHANGES.values()))
    value = change(draw)
    start = time.process_time()
    checked = _GATE.check(value)
    _check(value, checked)
    assert time.process_time() - start < _SECONDS, "it takes too long"
    assert pa.default_memory_pool().max_memory() < _ARROW_BYTES, "Arrow took too much memory"
    return checked.rows is not None and checked.rows.num_rows > 0


def fuzz(count: int, seed: int) -> int:
    """Returns of how many changed blocks at least one row passed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passed = runs.count(_run, count, seed)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < _PROCESS_BYTES, f"the process took {grown >> 20} MiB more"
    return passed


if __name__ == "__main__":
    runs.main(__doc__.splitlines()[0], fuzz, "passed at least in part")
