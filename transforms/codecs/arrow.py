"""Records that are Arrow IPC streams, each with canonical rows: decoded from raw blocks, and encoded."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.batch.provenance import PROVENANCE, ROWS_PER_RECORD, ensure_provenance, set_provenance
from millrace.transforms.batch.raw_block import source_partitions

_Types = dict[str, tuple[pa.DataType, bytes | None]]


def decode_arrow(
    block: pa.RecordBatch, features: Sequence[str] | pa.Schema | None = None, row_stride: int = 1
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(rows of all streams of a raw block, dead letters).

    Rows with provenance keep it; others are numbered within their record, as `record_codec.DecodeOptions` says. A
    column that some streams lack is null in their rows. A stream with a column of another type than in earlier streams,
    or than in `features`, is a dead letter. Metadata columns are kept beside `features`.
    """
    refusals = Refusals(block)
    types = _types(features) if isinstance(features, pa.Schema) else {}
    batches = []
    partitions, offsets = source_partitions(block).to_pylist(), block.column("offset").to_pylist()
    for row, value in enumerate(block.column("value")):
        try:
            batch = _project(_read(value.as_buffer()), features)
            batch = _with_provenance(batch, partitions[row], offsets[row], row_stride)
            types |= _check_types(batch.schema, types)
        except _RefusedError as refused:
            refusals.add(np.array([row]), refused.reason, str(refused))
        else:
            batches.append(batch)
    schema = features if isinstance(features, pa.Schema) else pa.schema([])
    rows = record_batch.concat(batches, pa.schema(list(PROVENANCE.items())))
    return _in_order(rows, schema), refusals.to_batch()


def encode_arrow(batch: pa.RecordBatch) -> pa.BinaryArray:
    """binary [n]: streams with all rows in order, each small enough for a Kafka message."""
    return pa.array([data for _, data in record_batch.split_to_bytes(batch)], pa.binary())


class _RefusedError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _read(value: pa.Buffer | None) -> pa.RecordBatch:
    if value is None or not value.size:
        raise _RefusedError(Reason.EMPTY_VALUE, "no value")
    try:
        batch = record_batch.from_bytes(value)
        batch.validate(full=True)
        names = batch.schema.names  # Arrow decodes the names only here, and they may be no UTF-8
    except (ValueError, pa.ArrowException) as error:
        raise _RefusedError(Reason.MALFORMED_ARROW, str(error)[:200]) from error
    if len(set(names)) < len(names):
        raise _RefusedError(Reason.DUPLICATE_FEATURE, "a column is there twice")
    return batch


def _project(batch: pa.RecordBatch, features: Sequence[str] | pa.Schema | None) -> pa.RecordBatch:
    if features is None:
        return batch
    wanted = set(features.names if isinstance(features, pa.Schema) else features)
    return batch.select([name for name in batch.schema.names if name in wanted or record_batch.is_metadata_name(name)])


def _with_provenance(batch: pa.RecordBatch, partition: int, offset: int, row_stride: int) -> pa.RecordBatch:
    if all(name in batch.schema.names for name in PROVENANCE):
        return ensure_provenance(batch, partition, offset)
    room = ROWS_PER_RECORD * row_stride
    if batch.num_rows > room:
        raise _RefusedError(Reason.TOO_MANY_ROWS, f"{batch.num_rows} rows of one source record, at most {room}")
    index = np.arange(batch.num_rows)
    offsets, rows = offset + index // ROWS_PER_RECORD, index % ROWS_PER_RECORD
    return set_provenance(batch, np.full(batch.num_rows, partition), offsets, rows)


def _types(schema: pa.Schema) -> _Types:
    return {field.name: (field.type, (field.metadata or {}).get(record_batch.KIND_KEY)) for field in schema}


def _check_types(schema: pa.Schema, known: _Types) -> _Types:
    """The types of a stream's columns; refuses it when one is not as `known`."""
    found = _types(schema)
    for name, kind in found.items():
        if known.get(name, kind) != kind:
            raise _RefusedError(Reason.WRONG_TYPE, f"column {name}: expected {known[name][0]}, found {kind[0]}"[:200])
    return found


def _in_order(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema` first, null where no stream has them."""
    fields = [*schema, *(field for field in rows.schema if field.name not in schema.names)]
    columns = [
        rows.column(field.name) if field.name in rows.schema.names else pa.nulls(rows.num_rows, field.type)
        for field in fields
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
