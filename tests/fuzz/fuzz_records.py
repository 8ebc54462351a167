"""Feeds changed records to the codecs, beside good ones: each becomes rows or one dead letter, and its neighbours stay.

    python -m tests.fuzz.fuzz_records --runs 1000000 --seed 1

What becomes of Examples, ExampleBatches and Instances is what the Protobuf runtime says; of JSON objects, what
`pyarrow.json` says alone. A run is one changed record; blocks of 32 go through together. A block depends on seed and
its number alone. Some blocks hold one record of some 100 KB, whose time per byte is bounded: a decoder that takes
quadratic time is too slow for long records only.
"""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from millrace.protos.instance_pb2 import Instance
from millrace.protos.line_id_pb2 import LineId
from millrace.protos.record_pb2 import Example, ExampleBatch, Feature
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import Refusals
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.codecs.json_parser import parse_objects, parse_unusual
from millrace.transforms.codecs.record_codec import decode_records
from tests.fuzz import runs
from tests.reference.record_comparison import assert_as_reference, block_of

_BLOCK = 32
_LONG = 100_000
# Decoders take 10 to 50 ns for a byte. One that copies at each piece of a record what it read before takes microseconds
# at this length.
_SECONDS_PER_BYTE = 1e-6
_NAMES = ["a", "b", "c", "d", "e", "f", "g"]
_JSON_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("items", pa.list_(pa.int64())),
        ("text", pa.string()),
        ("value", pa.float64()),
        ("context", pa.struct([("device", pa.string()), ("hour", pa.int64())])),
    ]
)
_JSON = [
    b'{"id":17,"items":[1,22,-3],"text":"ph\xc3\xb6ne","value":1.5,"context":{"device":"tv","hour":3}}',
    b'{"value": -2e3, "text":"a\\n\\u00e4", "context":null, "items":[], "id":9007199254740993}',
    b'{"more":{"x":[1,{"y":null}]},"id":0,"other":true,"last":"x"}',
]


def fuzz(count: int, seed: int) -> int:
    """Returns how many of the changed records were accepted."""
    accepted = 0
    for number in range(-(-count // _BLOCK)):
        draw = random.Random(f"{seed}/{number}")
        case = draw.choice(list(_CASES))
        try:
            accepted += _CASES[case](draw)
        except Exception as error:
            raise AssertionError(f"{case}, block {number} of seed {seed}: {error}") from error
    return accepted


def _changed(value: bytes, other: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(value)), draw.randrange(1, 9)
    kind = draw.randrange(6)
    if kind == 0:
        return value[:at]
    if kind == 1:
        return value[:at] + draw.randbytes(length) + value[at:]
    if kind == 2:
        return value[:at] + value[at + length :]
    if kind == 3:
        return value[:at] + other[draw.randrange(len(other)) :]
    if kind == 4:
        return value[:at] + draw.choice(list(value)).to_bytes(1, "little") + value[at + 1 :]
    flipped = bytearray(value)
    flipped[at] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def _records(make: Callable[[random.Random], Any], format: str) -> Callable[[random.Random], int]:
    def run(draw: random.Random) -> int:
        good = [make(draw).SerializeToString() for _ in range(4)]
        values: list[bytes | None] = [*good]
        for _ in range(_BLOCK):
            values += [_changed(draw.choice(good), draw.choice(good), draw), draw.choice(good)]
        assert_as_reference(values, format, draw.random() < 0.5)
        _, dead = decode_records(block_of(values), format)
        return _BLOCK - dead.num_rows

    return run


def _long(draw: random.Random) -> int:
    make, format = draw.choice([(_example, "example"), (_example_batch, "example_batch"), (_instance, "instance")])
    record = make(draw)
    parts = [(field, value) for field, value in record.ListFields() if field.is_repeated and field.message_type]
    field, values = draw.choice(parts)
    part = draw.choice(values).SerializeToString()
    tag = bytes([field.number << 3 | 2])
    grown = _repeated(part, draw) if draw.random() < 0.5 else part
    pieces = tag + _varint(len(grown)) + grown
    value = record.SerializeToString() + pieces * (1 + _LONG // len(pieces))
    start = time.thread_time()
    _, dead = decode_records(block_of([value, record.SerializeToString()]), format)
    seconds = time.thread_time() - start
    assert seconds < _SECONDS_PER_BYTE * len(value), f"{format} of {len(value)} bytes takes {seconds:.3f} s"
    return _BLOCK - dead.num_rows


def _repeated(message: bytes, draw: random.Random) -> bytes:
    """A message and after it some 100 KB of one of its leading pieces, well-formed or not."""
    piece = message[: draw.randrange(1, len(message) + 1)]
    return message + piece * (_LONG // len(piece))


def _varint(number: int) -> bytes:
    low = number & 0x7F
    return bytes([low | 0x80]) + _varint(number >> 7) if number >> 7 else bytes([low])


def _json(draw: random.Random) -> int:
    values: list[bytes | None] = [*_JSON]
    for _ in range(_BLOCK):
        values += [_changed(draw.choice(_JSON), draw.choice(_JSON), draw), draw.choice(_JSON)]
    block = block_of(values)
    refusals, judged = Refusals(block), Refusals(block)
    rows, positions = parse_objects(block, _JSON_SCHEMA, refusals)
    expected, found = parse_unusual(block.column("value"), np.arange(len(values)), _JSON_SCHEMA, judged)
    assert positions.tolist() == found.tolist()
    assert refusals.to_batch() == judged.to_batch()
    flat = [[batch.column(name).to_pylist() for name in _JSON_SCHEMA.names[:-1]] for batch in (rows, expected)]
    assert str(flat[0]) == str(flat[1])
    contexts = [[part.to_pylist() for part in batch.column("context").flatten()] for batch in (rows, expected)]
    assert contexts[0] == contexts[1]
    return _BLOCK - refusals.to_batch().num_rows


def _arrow(draw: random.Random) -> int:
    batch = pa.record_batch({"a": pa.array([[1], None, [2, 3]]), "t": pa.array(["x", "", None])})
    good = record_batch.to_bytes(with_provenance(batch))
    values: list[bytes | None] = []
    for _ in range(_BLOCK):
        values += [good, _changed(good, good, draw)]
    rows, dead = decode_records(block_of(values), "arrow")
    rows.validate(full=True)
    assert all(offset % 2 for offset in dead["offset"].to_pylist()), "a good stream is refused"
    assert rows.num_rows >= 3 * _BLOCK
    return _BLOCK - dead.num_rows


def _feature(name: str, draw: random.Random) -> Feature:
    feature = Feature()
    numbers = [draw.getrandbits(62) for _ in range(draw.randrange(4))]
    kind = draw.randrange(7) if draw.random() < 0.02 else _NAMES.index(name)
    if kind == 0:
        feature.fid_v2_list.value.extend(numbers)
    elif kind == 1:
        feature.float_list.value.extend(number / 7 for number in numbers)
    elif kind == 2:
        feature.bytes_list.value.extend(draw.randbytes(number % 9) for number in numbers)
    elif kind == 3:
        feature.int64_lists.list.add().value.extend(numbers)
    elif kind == 4:
        feature.fid_v1_list.value.extend(numbers)
    elif kind == 5:
        feature.double_value = draw.random()
    return feature


def _line_id(draw: random.Random) -> LineId:
    return LineId(uid=draw.getrandbits(64), actions=[1, -2], did="d\u00e4", is_draw=True, sample_rate=0.5, chnids=[7])


def _example(draw: random.Random) -> Example:
    example = Example(label=[1, 0.5], instance_weight=2, data_source_key=7, line_id=_line_id(draw))
    for name in draw.sample(_NAMES, 4):
        example.named_feature.add(name=name, id=3).feature.CopyFrom(_feature(name, draw))
    example.named_feature.add(name="__LABEL__").feature.float_list.value.append(1)
    example.named_raw_feature.add(name="r").raw_feature.feature.extend([b"raw", b""])
    return example


def _example_batch(draw: random.Random) -> ExampleBatch:
    size = draw.randrange(1, 4)
    batch = ExampleBatch(batch_size=size, data_source_key=7)
    for name in draw.sample(_NAMES, 3):
        shared = draw.random() < 0.3
        named = batch.named_feature_list.add(name=name, type=int(shared))
        for _ in range(1 if shared else size):
            named.feature.add().CopyFrom(_feature(name, draw))
    who = batch.named_feature_list.add(name="__LINE_ID__")
    for _ in range(size):
        who.feature.add().bytes_list.value.append(_line_id(draw).SerializeToString())
    batch.named_raw_feature_list.add(name="r", type=1).raw_feature.add().feature.append(b"raw")
    return batch


def _instance(draw: random.Random) -> Instance:
    instance = Instance(label=[1], value=[0.5], data_source_key=7, instance_weight=2, line_id=_line_id(draw))
    instance.fid.extend(draw.randrange(4) << 54 | draw.getrandbits(50) for _ in range(draw.randrange(5)))
    instance.feature.add(name="a").fid.extend(draw.getrandbits(62) for _ in range(3))
    instance.feature.add(name="d").int64_list.add().value.extend([draw.getrandbits(40)])
    instance.label_tag.add(key=1, val=2)
    instance.next_fid.append(9)
    return instance


_CASES: dict[str, Callable[[random.Random], int]] = {
    "example": _records(_example, "example"),
    "example_batch": _records(_example_batch, "example_batch"),
    "instance": _records(_instance, "instance"),
    "long": _long,
    "json": _json,
    "arrow": _arrow,
}


if __name__ == "__main__":
    runs.main(__doc__.splitlines()[0], fuzz, "accepted")
