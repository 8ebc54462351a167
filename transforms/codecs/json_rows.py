"""JSON objects, one a record, to rows of the canonical batch. A key is the name of a column."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.codecs import json_columns
from millrace.transforms.frames.framing import RECORD_ROW

_PROVENANCE = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)


def decode_json(block: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The rows of a raw block of JSON objects, one a record, and its dead letters.

    Args:
      schema: columns, features and metadata; other keys are ignored, and what an object lacks is null. Binary values
        are written as strings.
    """
    fields = [field for field in schema if field.name not in _PROVENANCE]
    refusals = Refusals(block)
    parsed, rows = json_columns.parse(block, pa.schema(fields), refusals)
    for field in fields:
        _refuse_nulls_in_lists(parsed.column(field.name), field.name, rows, refusals)
    good = refusals.keep(rows)
    chosen = pa.array(rows[good])
    index = record_batch.column_of(block, RECORD_ROW)
    places = (
        block.column("partition").take(chosen),
        block.column("offset").take(chosen),
        pa.array(np.zeros(len(chosen), np.int32)) if index is None else index.take(chosen),
    )
    columns = [*parsed.filter(pa.array(good)).columns, *places]
    names = [pa.field(name, column.type) for name, column in zip(_PROVENANCE, places, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([*fields, *names])), refusals.to_batch()


def _refuse_nulls_in_lists(column: pa.Array, name: str, rows: np.ndarray, refusals: Refusals) -> None:
    parents = np.arange(len(column))
    while pa.types.is_list(column.type):
        parents = parents[pc.list_parent_indices(column).to_numpy(zero_copy_only=False)]
        column = column.flatten()
        if column.null_count:
            nulls = pc.is_null(column).to_numpy(zero_copy_only=False)
            refusals.add(rows[np.unique(parents[nulls])], Reason.WRONG_TYPE, f"{name}: holds null")
