"""Train blocks with one fault each, as a broken feed or a hostile producer would write them."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import FLOORS_KEY


def replaced(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """`batch` with other values in a column."""
    return batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), values)


def _with_value(name: str, value: object) -> Callable[[pa.RecordBatch, int], pa.RecordBatch]:
    def change(batch: pa.RecordBatch, row: int) -> pa.RecordBatch:
        values = batch.column(name).to_pylist()
        values[row] = value
        return replaced(batch, name, pa.array(values, batch.schema.field(name).type))

    return change


ROW_FAULTS: dict[str, tuple[str, Callable[[pa.RecordBatch, int], pa.RecordBatch]]] = {
    "weight is NaN": ("weight_out_of_range", _with_value(record_batch.WEIGHT, float("nan"))),
    "weight is infinite": ("weight_out_of_range", _with_value(record_batch.WEIGHT, float("inf"))),
    "weight is negative": ("weight_out_of_range", _with_value(record_batch.WEIGHT, -1.0)),
    "weight is 1e18": ("weight_out_of_range", _with_value(record_batch.WEIGHT, 1e18)),
    "label is 10,001": ("label_out_of_range", _with_value(record_batch.LABEL, [10_001.0])),
    "label is infinite": ("label_out_of_range", _with_value(record_batch.LABEL, [float("inf")])),
    "two labels": ("label_count", _with_value(record_batch.LABEL, [1.0, 0.0])),
    "no label": ("label_count", _with_value(record_batch.LABEL, [])),
    "label is null": ("null", _with_value(record_batch.LABEL, [None])),
    "sample rate is 0": ("sample_rate_out_of_range", _with_value(record_batch.SAMPLE_RATE, 0.0)),
    "sample rate is 2": ("sample_rate_out_of_range", _with_value(record_batch.SAMPLE_RATE, 2.0)),
    "sample rate is NaN": ("sample_rate_out_of_range", _with_value(record_batch.SAMPLE_RATE, float("nan"))),
    "weight is null": ("null", _with_value(record_batch.WEIGHT, None)),
    "null in a list of fids": ("null", _with_value("user", [1 << 50, None])),
    "list of fids is null": ("null", _with_value("user", None)),
    "source row is 16384": ("provenance_out_of_range", _with_value(record_batch.SOURCE_ROW, 1 << 14)),
    "source row is negative": ("provenance_out_of_range", _with_value(record_batch.SOURCE_ROW, -1)),
    "source offset is negative": ("provenance_out_of_range", _with_value(record_batch.SOURCE_OFFSET, -1)),
    "source partition is negative": ("provenance_out_of_range", _with_value(record_batch.SOURCE_PARTITION, -1)),
}
"""{what is wrong with a row: (reason of its dead letter, (batch, row) to the batch with that fault)}."""


def _shifted_offsets(batch: pa.RecordBatch) -> bytes:
    """The offsets of the first list column point beyond its values, in the middle."""
    data, offsets = record_batch.to_bytes(batch), batch.column(0).offsets.to_numpy().astype(np.int32)
    wrong = offsets.copy()
    wrong[1:-1] = 1_000_000_000
    at = data.index(offsets.tobytes())
    return data[:at] + wrong.tobytes() + data[at + offsets.nbytes :]


def _compressed(batch: pa.RecordBatch, codec: str, values: int = 0) -> bytes:
    """Compressed buffers; with `values` zeros more in the last row of the first column."""
    if values:
        column = batch.column(0)
        offsets = column.offsets.to_numpy().copy()
        offsets[-1] += values
        filled = np.concatenate([column.values.to_numpy(), np.zeros(values, np.int64)])
        batch = replaced(batch, batch.schema.names[0], pa.ListArray.from_arrays(pa.array(offsets), pa.array(filled)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _with_floors(batch: pa.RecordBatch, floors: bytes) -> bytes:
    return record_batch.to_bytes(batch.replace_schema_metadata({FLOORS_KEY: floors}))


def _two_batches(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _fids_as_floats(batch: pa.RecordBatch) -> bytes:
    index = batch.schema.get_field_index("user")
    column = batch.column("user").cast(pa.list_(pa.float64()))
    return record_batch.to_bytes(batch.set_column(index, pa.field("user", column.type), column))


BLOCK_FAULTS: dict[str, tuple[str, Callable[[pa.RecordBatch], bytes]]] = {
    "offsets of a list beyond its values": ("not_arrow", _shifted_offsets),
    "no Arrow": ("not_arrow", lambda batch: b"PAR1 is another format"),
    "no bytes": ("not_arrow", lambda batch: b""),
    "cut short": ("not_arrow", lambda batch: record_batch.to_bytes(batch)[:-200]),
    "two batches": ("not_arrow", _two_batches),
    "a column is missing": ("wrong_columns", lambda batch: record_batch.to_bytes(batch.drop_columns(["user"]))),
    "a column of another type": ("wrong_columns", _fids_as_floats),
    "lz4": ("compressed", lambda batch: _compressed(batch, "lz4")),
    "14 KB that would take 300 MB": ("compressed", lambda batch: _compressed(batch, "zstd", 40_000_000)),
    "floors that are no JSON": ("bad_floors", lambda batch: _with_floors(batch, b"[")),
    "floors that are nested": ("bad_floors", lambda batch: _with_floors(batch, b"[" * 200_000)),
    "too large": ("too_large", lambda batch: bytes(8_000_001)),
}
"""{what is wrong with a block: (reason of its dead letter, batch to the bytes with that fault)}."""
