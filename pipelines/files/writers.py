"""Writes canonical batches to one file of any format; memory is bounded by a batch."""

from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import pyarrow as pa

from millrace.pipelines.files.containers import BATCH_ROWS, CONTAINERS, write_records
from millrace.pipelines.files.format import TF_EXAMPLE, RecordSettings
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.codecs.json_writer import json_lines
from millrace.transforms.codecs.record_codec import encode_records
from millrace.transforms.codecs.tables import check_columns

Encode = Callable[[pa.RecordBatch], pa.BinaryArray]
"""Rows to the values of records."""


def make_encoder(settings: RecordSettings) -> Encode:
    """A function from rows to the values of records, in the format of `settings`."""
    if settings.format == "json":
        return lambda rows: json_lines(rows).cast(pa.binary())
    if settings.format == TF_EXAMPLE:
        from millrace.transforms.codecs.tf_example import encode_tf_examples

        options = settings.tf_example
        assert options is not None
        return lambda rows: encode_tf_examples(rows, options)
    return lambda rows: encode_records(rows, settings.format)


def needs_schema(settings: RecordSettings) -> bool:
    """Whether all rows of the file must have the same columns: files of rows, but not files of records."""
    return settings.framing is None


def write_rows(file: BinaryIO, batches: Iterable[pa.RecordBatch], settings: RecordSettings) -> None:
    """Writes `batches`. Where `needs_schema` is true there must be at least one, and all must have one schema.

    Raises: UserError naming a column that the format cannot hold.
    """
    if settings.framing is None:
        CONTAINERS[settings.format].write(file, batches)
        return
    encode = make_encoder(settings)
    values = (encode(part) for batch in batches for part in _slices(batch, BATCH_ROWS))
    write_records(file, values, settings.framing, settings.compression)


def _slices(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


class MoreColumnsError(Exception):
    """A batch has columns that the first one lacks; `schema` has the columns of all batches."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(f"columns {', '.join(schema.names)}")
        self.schema = schema


def with_one_schema(batches: Iterator[pa.RecordBatch], schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    """The batches with the columns of `schema`, default: of the first batch. Without batches, one that has no rows.

    Raises:
      MoreColumnsError: a batch has other columns. All batches have been read by then, so that it names them all.
      UserError: a column has two types, or one that no feature has.
    """
    for batch in batches:
        union = _union(schema, batch.schema)
        if union is not schema:
            check_columns(union.remove_metadata(), None, {})
        if schema is not None and len(union) > len(schema):
            for rest in batches:
                union = _union(union, rest.schema)
            raise MoreColumnsError(union)
        schema = union
        yield _fitted(batch, schema)
    if schema is None:
        yield with_provenance(record_batch.empty(pa.schema([])))


def _union(known: pa.Schema | None, found: pa.Schema) -> pa.Schema:
    """`known` with the fields of `found` that it lacks."""
    if known is None:
        return found
    new = []
    for field in found:
        index = known.get_field_index(field.name)
        if index < 0:
            new.append(field)
        elif _kind(known.field(index)) != _kind(field):
            raise UserError(
                f"column {field.name}",
                field.type,
                f"in earlier records it is {known.field(index).type}",
                "convert the records apart, or map the column with --recipe",
            )
    return pa.schema([*known, *new]) if new else known


def _kind(field: pa.Field) -> tuple[pa.DataType, bytes | None]:
    return field.type, (field.metadata or {}).get(record_batch.KIND_KEY)


def _fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [record_batch.column_of(batch, field.name) for field in schema]
    filled = [
        pa.nulls(batch.num_rows, field.type) if column is None else column
        for field, column in zip(schema, columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(filled, schema=schema)
