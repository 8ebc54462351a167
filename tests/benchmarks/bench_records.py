"""Records per second of the codecs on one core, beside the Protobuf runtime, `tf.io.parse_example` and a plain copy.

python tests/benchmarks/bench_records.py [--json] [--seconds 2]

A record has 41 features (26 lists of fids, 13 of one float, 2 of others), a line id and a label: 1.1 KB.
`tf.io.parse_example` reads the same values from `tf.Example`, and gives ragged and dense tensors.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from millrace.pipelines.traffic.producer import impression_values
from millrace.pipelines.traffic.source import GeneratedSource
from millrace.pipelines.traffic.world import EventWorld, WorldConfig
from millrace.protos.record_pb2 import Example
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.codecs.record_codec import DecodeOptions, decode_records, encode_records
from millrace.transforms.feed import events
from millrace.transforms.feed.event_schemas import impression_schema

_SPARSE, _DENSE = 26, 13
_BLOCK = 2000
_NOW = 1_764_000_000_000
_CONTEXT = {"device": "string", "hour": "int64"}

_Case = tuple[str, int, str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each case runs")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # every case has the same one core
    for case, records, unit, work in _cases():
        work()
        rounds, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < arguments.seconds:
            work()
            rounds += 1
        value = records * rounds / elapsed
        if arguments.json:
            print(json.dumps({"case": case, "value": round(value), "unit": unit}), flush=True)
        else:
            print(f"{case:<52} {value:>14,.0f} {unit}", flush=True)


def _cases() -> Iterator[_Case]:
    """(case, records per call, unit, call)."""
    yield from _proto_cases()
    yield from _tensorflow_cases()
    yield from _json_cases()


def _proto_cases() -> Iterator[_Case]:
    values = [example.SerializeToString() for example in _examples()]
    block = _raw_block("records", values)
    joined = np.frombuffer(b"".join(values), np.uint8)
    rows, _ = decode_records(block, "example")
    few = DecodeOptions(features=rows.schema.names[:4])
    yield "copy of the bytes of Examples (bound)", _BLOCK, "records/s", joined.copy
    yield "decode Examples", _BLOCK, "records/s", lambda: decode_records(block, "example")
    yield "decode Examples, 4 of 41 features", _BLOCK, "records/s", lambda: decode_records(block, "example", few)
    yield "decode Examples, Protobuf runtime (peer)", _BLOCK, "records/s", lambda: _decode_by_rows(block)
    batches = _raw_block("records", encode_records(rows, "example_batch").to_pylist())
    yield "decode ExampleBatches of 64 rows", _BLOCK, "rows/s", lambda: decode_records(batches, "example_batch")
    instances = _raw_block("records", encode_records(rows, "instance").to_pylist())
    yield "decode Instances", _BLOCK, "records/s", lambda: decode_records(instances, "instance")
    yield "encode Examples", _BLOCK, "records/s", lambda: encode_records(rows, "example")
    yield "encode ExampleBatches of 64 rows", _BLOCK, "rows/s", lambda: encode_records(rows, "example_batch")
    yield "encode Instances", _BLOCK, "records/s", lambda: encode_records(rows, "instance")


def _tensorflow_cases() -> Iterator[_Case]:
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    serialized = tf.constant([_tf_example(tf, example) for example in _examples()])
    features = {name: tf.io.RaggedFeature(tf.int64) for name in (*_sparse_names(), "count", "actions")}
    features |= {name: tf.io.FixedLenFeature([1], tf.float32) for name in (*_dense_names(), "label")}
    features |= {name: tf.io.FixedLenFeature([], tf.int64) for name in ("uid", "item_id", "req_time")}
    features["text"] = tf.io.FixedLenFeature([], tf.string)
    parse = tf.function(lambda values: tf.io.parse_example(values, features))
    yield "decode tf.Examples, tf.io.parse_example (peer)", _BLOCK, "records/s", lambda: parse(serialized)


def _json_cases() -> Iterator[_Case]:
    block = _raw_block("events.impressions", _impressions())
    yield (
        "decode JSON impressions of 3 items",
        _BLOCK,
        "events/s",
        lambda: events.decode_impressions(block, _CONTEXT, _NOW),
    )
    yield (
        "decode JSON impressions, json.loads (peer)",
        _BLOCK,
        "events/s",
        lambda: _decode_json_by_rows(block),
    )


def _sparse_names() -> list[str]:
    return [f"slot_{slot}" for slot in range(1, _SPARSE + 1)]


def _dense_names() -> list[str]:
    return [f"dense_{index}" for index in range(_DENSE)]


def _examples() -> list[Example]:
    draw = np.random.default_rng(0)
    return [_example(draw, row) for row in range(_BLOCK)]


def _example(draw: np.random.Generator, row: int) -> Example:
    example = Example(label=[row % 2])
    for slot, name in enumerate(_sparse_names(), 1):
        fids = (slot << 48) + draw.integers(0, 1 << 48, draw.integers(1, 3))
        example.named_feature.add(name=name, id=slot).feature.fid_v2_list.value.extend(fids.tolist())
    for name in _dense_names():
        example.named_feature.add(name=name).feature.float_list.value.append(draw.random())
    example.named_feature.add(name="count").feature.int64_list.value.append(int(draw.integers(0, 1000)))
    example.named_feature.add(name="text").feature.bytes_list.value.append(b"phone")
    who = example.line_id
    who.uid, who.item_id, who.req_time = (int(number) for number in draw.integers(0, 1 << 40, 3))
    who.actions.extend([1, 2])
    return example


def _tf_example(tf: Any, example: Example) -> bytes:
    """The same values."""
    features = {}
    for named in example.named_feature:
        kind = named.feature.WhichOneof("type")
        values = getattr(named.feature, kind).value
        if kind == "float_list":
            features[named.name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        elif kind == "bytes_list":
            features[named.name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        else:
            features[named.name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    who = example.line_id
    for name in ("uid", "item_id", "req_time"):
        features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[getattr(who, name)]))
    features["actions"] = tf.train.Feature(int64_list=tf.train.Int64List(value=who.actions))
    features["label"] = tf.train.Feature(float_list=tf.train.FloatList(value=example.label))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _decode_by_rows(block: pa.RecordBatch) -> pa.RecordBatch:
    """What a decoder in Python does, without checks: one message per record, one list per column."""
    names = [*_sparse_names(), *_dense_names(), "count", "text"]
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "label", "actions", "uid", "item_id", "req_time")}
    members = dict.fromkeys(_sparse_names(), "fid_v2_list") | dict.fromkeys(_dense_names(), "float_list")
    members |= {"count": "int64_list", "text": "bytes_list"}
    for value in block.column("value").to_pylist():
        example = Example.FromString(value)
        for named in example.named_feature:
            columns[named.name].append(list(getattr(named.feature, members[named.name]).value))
        who = example.line_id
        for name, found in (("label", example.label), ("actions", who.actions)):
            columns[name].append(list(found))
        for name in ("uid", "item_id", "req_time"):
            columns[name].append(getattr(who, name))
    return pa.RecordBatch.from_arrays([pa.array(values) for values in columns.values()], list(columns))


def _decode_json_by_rows(block: pa.RecordBatch) -> pa.RecordBatch:
    """What a decoder in Python does, without checks."""
    rows = []
    for offset, value in enumerate(block.column("value").to_pylist()):
        event = json.loads(value)
        context = event["context"]
        for row, item in enumerate(event["item_ids"]):
            head = (event["request_id"], event["user_id"], item, event["timestamp_ms"])
            rows.append((*head, context["device"], context["hour"], 0, offset, row))
    schema = impression_schema(_CONTEXT)
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _raw_block(topic: str, values: list[bytes]) -> pa.RecordBatch:
    return raw_block(topic, values, 0, np.arange(len(values)), _NOW)


def _impressions() -> list[bytes]:
    draw = GeneratedSource(EventWorld(WorldConfig())).draw(_BLOCK, _NOW)
    values = impression_values(draw, [f"r-0-{index}" for index in range(_BLOCK)], _NOW)
    return [value.encode() for value in values]


if __name__ == "__main__":
    main()
