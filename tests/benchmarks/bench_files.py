"""Records per second of files and framed values on one core, beside plain loops over records.

python tests/benchmarks/bench_files.py [--json] [--seconds 2]
"""

import argparse
import io
import json
import struct
import time
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np
import pyarrow as pa

from millrace.pipelines.files.containers import CONTAINERS, Container
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.codecs.avro import AvroCodec
from millrace.transforms.codecs.avro_schema import avro_schema
from millrace.transforms.codecs.tf_example import TfExampleOptions, decode_tf_examples, encode_tf_examples
from millrace.transforms.frames.compression import Compression, read_chunks, write_chunks
from millrace.transforms.frames.framing import (
    FILE_FRAMES,
    KAFKA_FRAMES,
    LINES,
    TF_RECORDS,
    Framing,
    deframe,
    join_frames,
)
from millrace.transforms.frames.stream import FrameStream
from tests.reference.avro_values import encode_avro

_RECORDS = 10_000
_RECORD_BYTES = 1100
_FEATURES = 41
_ROWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each case runs")
    arguments = parser.parse_args()
    for case, records, work in _cases():
        rounds, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < arguments.seconds:
            work()
            rounds += 1
        value = records * rounds / elapsed
        if arguments.json:
            print(json.dumps({"case": case, "value": round(value), "unit": "records/s"}), flush=True)
        else:
            print(f"{case:<44} {value:>14,.0f} records/s", flush=True)


def _cases() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(case, records per call, call)."""
    values = pa.array([bytes([65 + n % 26]) * _RECORD_BYTES for n in range(_RECORDS)], pa.binary())
    for name, options in (("framed file", FILE_FRAMES), ("TFRecord file", TF_RECORDS), ("lines", LINES)):
        data = join_frames(values, options).to_pybytes()
        yield f"read {name}", _RECORDS, _stream_reader(data, options)
        if options == TF_RECORDS:
            yield "read TFRecord file, record by record (peer)", _RECORDS, lambda data=data: _read_tf_records(data)
        yield f"write {name}", _RECORDS, lambda options=options: join_frames(values, options)
    framed = join_frames(values, FILE_FRAMES)
    for kind in (Compression.SNAPPY, Compression.ZSTD, Compression.GZIP):
        file = io.BytesIO()
        write_chunks(file, iter([framed]), kind)
        yield f"read framed file, {kind.name.lower()}", _RECORDS, _stream_reader(file.getvalue(), FILE_FRAMES, kind)
    block = _raw([join_frames(values.slice(n, 4), KAFKA_FRAMES).to_pybytes() for n in range(0, 2000, 4)])
    yield "deframe values of 4 records", 2000, lambda: deframe(block, KAFKA_FRAMES)
    yield from _row_cases()


def _row_cases() -> Iterator[tuple[str, int, Callable[[], object]]]:
    batch = _batch()
    for name in ("parquet", "arrow", "avro"):
        container, file = CONTAINERS[name], io.BytesIO()
        container.write(file, [batch])
        yield f"read {name}, {_FEATURES} features", _ROWS, _row_reader(container, file.getvalue())
        yield f"write {name}, {_FEATURES} features", _ROWS, _row_writer(container, batch)
    options = TfExampleOptions({f"slot_{slot}": slot for slot in range(1, _FEATURES + 1)})
    examples = _raw(encode_tf_examples(batch, options).to_pylist())
    yield f"decode tf.Example, {_FEATURES} features", _ROWS, lambda: decode_tf_examples(examples, options)
    avro = _raw(encode_avro(batch).to_pylist())
    codec = AvroCodec(avro_schema(batch.schema))
    yield f"decode Avro values, {_FEATURES} features", _ROWS, lambda: codec.decode(avro)


def _row_reader(container: Container, data: bytes) -> Callable[[], int]:
    return lambda: sum(rows.num_rows for rows, _ in container.read(io.BytesIO(data), 0, "bench"))


def _row_writer(container: Container, batch: pa.RecordBatch) -> Callable[[], None]:
    return lambda: container.write(io.BytesIO(), [batch])


def _stream_reader(data: bytes, options: Framing, kind: Compression = Compression.NO) -> Callable[[], int]:
    def read() -> int:
        stream = FrameStream(read_chunks(io.BytesIO(data), kind), options, "bench")
        return sum(block.num_rows for block, _ in stream)

    return read


def _read_tf_records(data: bytes) -> list[bytes]:
    records, position = [], 0
    while position < len(data):
        length, crc = struct.unpack_from("<QI", data, position)
        if crc != _masked(data[position : position + 8]):
            raise ValueError("length")
        payload = data[position + 12 : position + 12 + length]
        if struct.unpack_from("<I", data, position + 12 + length)[0] != _masked(payload):
            raise ValueError("payload")
        records.append(payload)
        position += 16 + length
    return records


def _masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _batch() -> pa.RecordBatch:
    draw = np.random.default_rng(1)
    splits = pa.array(np.arange(_ROWS + 1, dtype=np.int32) * 2)
    columns, fields = [], []
    for slot in range(1, _FEATURES + 1):
        fids = (slot << 48) | draw.integers(0, 1 << 48, 2 * _ROWS)
        columns.append(pa.ListArray.from_arrays(splits, pa.array(fids)))
        fields.append(record_batch.fid_field(f"slot_{slot}"))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _raw(values: list[bytes]) -> pa.RecordBatch:
    return raw_block("bench", values, 0, np.arange(len(values)))


if __name__ == "__main__":
    main()
